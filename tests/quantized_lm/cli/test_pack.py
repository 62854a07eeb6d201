"""Claims about `secondpass pack`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from quantized_lm.artifact import load_artifact
from quantized_lm.manifest import MANIFEST, read_manifest
from quantized_lm.pipeline.export import RunFolders, export
from quantized_lm.pipeline.quantize import quantize
from quantized_lm.pipeline.recipe import load_recipe
from quantized_lm.pipeline.train import train
from service.cli import build_cli
from tests.quantized_lm.pipeline.pretrained import LINES, write_gpt2_folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_gpt2_folder(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def pack(*arguments: object) -> Result:
    return CliRunner().invoke(build_cli(), ["pack", *map(str, arguments)])


@pytest.mark.parametrize(
    ("options", "least", "most"),
    [((), 0.0, 0.02), (("--format", "4bit:normal", "--group-size", 8), 1e-3, 0.5)],
)
def test_what_is_packed_is_served_and_what_it_cost_is_told(
    source: Path, tmp_path: Path, options: tuple[object, ...], least: float, most: float
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(LINES) + "\n")
    out = tmp_path / "models" / "small"
    done = pack(source, out, "--texts", texts, "--license", "MIT", *options)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    loaded = load_artifact(out)
    manifest = loaded.manifest
    assert (told["model"], loaded.name, manifest.license) == ("small", "small", "MIT")
    assert told["size_bytes"] == manifest.size_bytes
    assert manifest.provenance["source"] == "gpt2"
    assert told["lines"] == len(LINES)
    assert least <= abs(told["nll_difference"]) <= most
    assert "secondpass serve --model" in done.stderr


def test_each_matrix_has_the_format_that_was_asked_for(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "mixed"
    done = pack(source, out, "--format", "2bit", "--embedding", "8bit", "--case", "keep")
    assert done.exit_code == 0, done.output
    manifest = read_manifest(out)
    formats = {name: entry.format for name, entry in manifest.tensors.items() if "weight" in name}
    assert formats["embedding.weight"] == "8bit"
    assert formats["blocks.1.down.weight"] == "2bit"
    assert manifest.text.case == "keep"


def test_a_model_that_8_bits_are_too_few_for_is_told_with_what_helps(
    source: Path, tmp_path: Path
) -> None:
    weights = source / "model.safetensors"
    state = load_file(weights)
    for layer in range(2):  # one column of what runs through the model is far above all others
        state[f"transformer.h.{layer}.ln_2.bias"][0] = 1e4
        state[f"transformer.h.{layer}.mlp.c_fc.weight"][0] = 0.0
    save_file(state, weights)
    out = tmp_path / "wide"
    refused = pack(source, out)
    assert refused.exit_code == 2
    told = refused.stderr.splitlines()[-1]
    assert re.search(r"loses too much in 8 bits: .* scores -\d.*; its golden score is -\d", told)
    served = pack(source, out, "--backend", "reference")
    assert served.exit_code == 0, served.output
    assert abs(json.loads(served.stdout.splitlines()[-1])["nll_difference"]) < 0.02


def test_a_recipe_goes_on_from_it(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    assert pack(source, out).exit_code == 0
    (tmp_path / "calls.txt").write_text("".join(f"{line}\n" for line in LINES * 40))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
name: calls
start: {out}
license: MIT
training_data: made up
corpus: {{train: [calls.txt], held_out: calls.txt, dev_lines: 8, test_lines: 8}}
train: {{steps: 2, window: 16, batch_windows: 2, compile: false}}
quantize: {{steps: 2, batch_windows: 2}}
"""
    )
    settings = load_recipe(recipe)
    assert settings.architecture == "gpt2"
    run = tmp_path / "run"
    train(settings, data=tmp_path, out=run)
    quantize(settings, run=run, out=run / "quantize")
    folders = RunFolders(run, run / "quantize")
    made = export(settings, b"", folders=folders, out=run / "calls", default_weights={})
    assert load_artifact(made).manifest.provenance["start"] == str(out)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("{source}", "{source}"), "holds something else than a model; need a new folder"),
        (("{source}", "{source}/config.json"), "is a file; need a new folder"),
        (("{source}", "{out}", "--format", "3bit"), "'3bit'"),
        (("{source}", "{out}", "--group-size", "0"), "group_size is 0; need at least 1"),
        (("{source}", "{out}", "--case", "camel"), "text case is 'camel'"),
        (("{source}/none", "{out}"), "config.json: cannot be read"),
        (("{source}", "{out}", "--texts", "{source}/none"), "none: cannot be read"),
        (("{source}", "{out}", "--texts", "/dev/null"), "no words in the texts to compare on"),
        (("{source}", "{out}", "--lm-scale", "nan"), "lm_scale"),
    ],
)
def test_what_cannot_be_packed_is_one_line_and_leaves_nothing(
    source: Path, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    before = sorted(path.name for path in source.iterdir())
    out = tmp_path / "out"
    done = pack(*(one.format(source=source, out=out) for one in arguments))
    assert done.exit_code == 2, done.output
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert sorted(path.name for path in source.iterdir()) == before
    assert not (out / MANIFEST).exists()
