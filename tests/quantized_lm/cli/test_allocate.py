"""`sensitivity` and `allocate`: from a float model to a format for each matrix."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner

from quantized_lm.cli import allocate, sensitivity
from quantized_lm.pipeline.allocate import read_allocation
from quantized_lm.pipeline.corpus import prepare_corpus
from quantized_lm.pipeline.recipe import load_recipe, recipe_with
from quantized_lm.pipeline.rounding import RATED_CHOICES
from quantized_lm.pipeline.sensitivity import CHOICES
from quantized_lm.pipeline.train import make_model
from tests.runs import leave_trained
from tests.tiny import TINY_YAML, write_text

from .conftest import Command

Method = tuple[str, dict[str, Any]]  # of quantizing, and its settings


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """Run one of the two commands; tiny products go faster without threads."""
    monkeypatch.setenv("COLUMNS", "160")
    cli = typer.Typer()
    cli.command("sensitivity")(sensitivity.run)
    cli.command("allocate")(allocate.run)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lambda *arguments: CliRunner().invoke(cli, [str(argument) for argument in arguments])
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe beside its run folder, which holds random float weights."""
    folder = tmp_path_factory.mktemp("run")
    path = folder / "tiny.yaml"
    path.write_text(TINY_YAML)
    settings = load_recipe(path)
    write_text(folder, lines=300)
    prepare_corpus(settings.corpus, data=folder, out=folder / "corpus")
    model = make_model(settings)
    model.initialize(seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.2)
    leave_trained(folder, settings, model)
    return path


def test_two_commands_lead_from_weights_to_formats(run: Command, recipe: Path) -> None:
    folder = ("--run", recipe.parent)
    measured = run("sensitivity", recipe, *folder, "--windows", "4")
    assert measured.exit_code == 0, measured.output
    assert "next: secondpass allocate" in measured.stderr
    report = json.loads(measured.stdout.splitlines()[-1])
    assert set(report["costs"]["embedding.weight"]) == set(CHOICES)
    found = run("allocate", recipe, *folder, "--bits", "6", "--joint")
    assert found.exit_code == 0, found.output
    assert "blocks.0.out.weight" in found.stdout
    record = json.loads(found.stdout.splitlines()[-1])
    kept = read_allocation(Path(record["path"]))
    assert kept.formats == record["formats"]
    assert kept.size_bytes == record["size_bytes"] <= kept.budget_bytes
    assert kept.budget_bytes == int(kept.float_bytes * 6 / 32)
    assert record["joint_kl"]["mean"] > 0


def test_a_matrix_that_costs_nothing_is_shown_as_any_other(
    run: Command, recipe: Path, tmp_path: Path
) -> None:
    settings = load_recipe(recipe)
    prepare_corpus(settings.corpus, data=recipe.parent, out=tmp_path / "corpus")
    model = make_model(settings)
    model.initialize(seed=0)  # outputs into the residual stream are zero: nobody hears the others
    leave_trained(tmp_path, settings, model)
    result = run("sensitivity", recipe, "--run", tmp_path, "--windows", "2")
    assert result.exit_code == 0, result.output
    costs = json.loads(result.stdout.splitlines()[-1])["costs"]
    assert {cost["mean"] for cost in costs["blocks.0.qkv.weight"].values()} == {0.0}


def test_by_hand_needs_no_measurement(run: Command, recipe: Path) -> None:
    found = run("allocate", recipe, "--run", recipe.parent, "--metric", "manual", "--budget", "5x")
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout.splitlines()[-1])
    assert record["metric"] == "manual"
    assert record["compression"] >= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "need --budget, --bits or --coded-bits"),
        (("--budget", "16x", "--bits", "2"), "need --budget, --bits or --coded-bits"),
        (("--budget", "x16"), "--budget is 'x16'; need bytes"),
        (("--budget", "0x"), "--budget is '0x'; need bytes"),
        (("--bits", "inf"), "--bits is inf; need bits per weight, such as 2.0"),
        (("--bits", "1e308"), "--bits is 1e+308; need bits per weight"),
        (("--budget", "10"), "the budget is 10 bytes; the smallest reachable size is"),
        (("--budget", "5x", "--metric", "guess"), "--metric is 'guess'; need one of kl, hessian"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(
    run: Command, recipe: Path, options: tuple[str, ...], message: str
) -> None:
    result = run("allocate", recipe, "--run", recipe.parent, "--metric", "manual", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_allocating_by_what_was_not_measured_is_told_what_to_do(
    run: Command, recipe: Path, tmp_path: Path
) -> None:
    result = run("allocate", recipe, "--run", tmp_path, "--metric", "hessian", "--budget", "5x")
    assert result.exit_code == 2
    assert "run `secondpass sensitivity` first" in result.stderr


def test_rates_are_allocated_for_a_recipe(run: Command, recipe: Path) -> None:
    folder = ("--run", recipe.parent)
    run("sensitivity", recipe, *folder, "--windows", "4")
    result = run("allocate", recipe, *folder, "--coded-bits", "2")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout.splitlines()[-1])
    rates = read_allocation(Path(record["path"])).rates
    weights = {name: make_model(load_recipe(recipe)).get_parameter(name).numel() for name in rates}
    mean = sum(weights[name] * rate for name, rate in rates.items()) / sum(weights.values())
    assert mean == pytest.approx(2.0)
    fewer = json.loads(
        run("allocate", recipe, *folder, "--coded-bits", "1").stdout.splitlines()[-1]
    )
    assert fewer["cost"] > record["cost"] > 0
    codes = sum(weights.values()) / 8
    assert record["size_bytes"] - fewer["size_bytes"] == pytest.approx(codes, abs=2)
    assert fewer["size_bytes"] > 1.2 * codes  # scales, tables and plain tensors are in it
    pasted = yaml.safe_load(result.stderr[result.stderr.index("method:") :])
    assert pasted["overrides"] == {name: {"bits": round(rate, 3)} for name, rate in rates.items()}
    assert set(pasted["formats"]) == set(rates)
    both = run("allocate", recipe, *folder, "--coded-bits", "2", "--bits", "2")
    assert both.exit_code == 2
    assert "goes with --metric alone" in both.stderr
    assert run("allocate", recipe, *folder, "--coded-bits", "9").exit_code == 2


def test_rates_by_costs_at_several_of_them(run: Command, recipe: Path, tmp_path: Path) -> None:
    folder = ("--run", tmp_path / "run")
    shutil.copytree(recipe.parent, tmp_path / "run")
    measured = run("sensitivity", recipe, *folder, "--windows", "4", "--formats", "rates")
    assert measured.exit_code == 0, measured.output
    assert "--coded-bits 2" in measured.stderr
    costs = json.loads(measured.stdout.splitlines()[-1])["costs"]
    assert set(costs["embedding.weight"]) == set(RATED_CHOICES)
    result = run("allocate", recipe, *folder, "--coded-bits", "2")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout.splitlines()[-1])
    assert record["metric"] == "kl at rates"
    weights = {
        name: make_model(load_recipe(recipe)).get_parameter(name).numel()
        for name in record["rates"]
    }
    codes = sum(weights[name] * rate for name, rate in record["rates"].items())
    assert codes / sum(weights.values()) == pytest.approx(2.0)
    assert record["size_bytes"] > codes / 8
    assert 0 < record["cost"] < sum(row["4bit:quinary@1"]["mean"] for row in costs.values())
    formats = run("allocate", recipe, *folder, "--bits", "6")
    assert formats.exit_code == 2
    assert "costs were measured at rates" in formats.stderr


@pytest.mark.parametrize("options", [("--bits", "6"), ("--coded-bits", "2")])
def test_a_whole_recipe_is_written_with_what_was_found(
    run: Command, recipe: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    folder = ("--run", recipe.parent)
    run("sensitivity", recipe, *folder, "--windows", "4")
    to = tmp_path / "smaller.yaml"
    found = run("allocate", recipe, *folder, *options, "--write", to)
    assert found.exit_code == 0, found.output
    assert f"next: secondpass quantize {to}" in found.stderr
    record = json.loads(found.stdout.splitlines()[-1])
    old, new = load_recipe(recipe), load_recipe(to)
    assert dict(new.quantize.formats) == record["formats"]
    assert replace(new, quantize=old.quantize) == old
    assert new.quantize.steps == old.quantize.steps
    again = run("allocate", recipe, *folder, *options, "--write", to)
    assert again.exit_code == 2
    assert "exists already" in again.stderr


@pytest.mark.parametrize(
    ("base", "options", "expected"),
    [
        (
            ("rated", {"bits": 2.0, "tie": "tensor"}),
            ("--bits", "6"),
            ("learned", {"tie": "tensor"}),
        ),
        (("admm", {"rho": 1e-4}), ("--bits", "6"), ("admm", {"rho": 1e-4})),
        (("admm", {"rho": 1e-4}), ("--coded-bits", "2"), ("rated", {})),
        (("rated", {"price": 0.1, "bits": 3.0}), ("--coded-bits", "2"), ("rated", {"price": 0.1})),
    ],
)
def test_what_is_written_trains_what_was_allocated(
    run: Command, recipe: Path, tmp_path: Path, base: Method, options: Any, expected: Method
) -> None:
    folder = ("--run", recipe.parent)
    run("sensitivity", recipe, *folder, "--windows", "4")
    given, to = tmp_path / "given.yaml", tmp_path / "new.yaml"
    given.write_bytes(recipe_with(recipe, {"method": base[0], "settings": base[1]}))
    found = run("allocate", given, *folder, *options, "--write", to)
    assert found.exit_code == 0, found.output
    quantize = load_recipe(to).quantize
    assert (quantize.method, quantize.settings) == expected
