from __future__ import annotations

import gzip
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from quantized_lm.errors import DataError, RecipeError
from quantized_lm.pipeline.batches import WindowPacker
from quantized_lm.pipeline.checkpoint import load_weights
from quantized_lm.pipeline.corpus import open_corpus, prepare_corpus
from quantized_lm.pipeline.loop import mean_nll
from quantized_lm.pipeline.optimizer import rate_factor
from quantized_lm.pipeline.train import make_model, make_packer, next_token_loss, train
from service.cli import build_cli
from tests.conftest import TinyRun
from tests.tiny import TINY_YAML, tiny_recipe, write_text


def history(out: Path) -> list[dict[str, float]]:
    return [json.loads(row) for row in (out / "history.jsonl").read_text().splitlines()]


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = load_weights(first), load_weights(second)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_training_learns_and_keeps_a_learning_curve(tiny_run: TinyRun) -> None:
    rows = history(tiny_run.out / "train")
    assert [row["step"] for row in rows] == [30, 60]
    assert rows[1]["dev_nll"] < rows[0]["dev_nll"] < 2.5
    assert rows[1]["dev_word_perplexity"] < 30


def test_weights_kept_on_the_way_are_those_that_were_measured(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    recipe = tiny_recipe(steps=12, eval_every=5, keep_every=4)
    train(recipe, data=tiny_run.data, out=tmp_path)
    folder = tmp_path / "train"
    assert {path.name for path in folder.glob("weights-*")} == {"weights-4.pt", "weights-8.pt"}
    rows = {row["step"]: row for row in history(folder)}
    assert sorted(rows) == [4, 5, 8, 10, 12]
    corpus = open_corpus(recipe.corpus, tmp_path / "corpus")
    for step in (4, 8):
        model = make_model(recipe)
        model.load_state_dict(load_weights(folder / f"weights-{step}.pt"))
        loss = next_token_loss(model.eval(), compiled=False)
        measured = mean_nll(loss, corpus.tokens("dev"), window=recipe.train.window)
        assert measured == pytest.approx(rows[step]["dev_nll"], abs=1e-3)


def test_the_same_seed_makes_the_same_weights(tiny_run: TinyRun, tmp_path: Path) -> None:
    weights = train(tiny_run.recipe, data=tiny_run.data, out=tmp_path)
    assert_same_weights(weights, tiny_run.out / "train" / "weights.pt")


def test_a_finished_run_is_not_trained_again(tiny_run: TinyRun) -> None:
    checkpoint = tiny_run.out / "train" / "checkpoint.pt"
    before = checkpoint.stat().st_mtime_ns
    weights = train(tiny_run.recipe, data=tiny_run.data, out=tiny_run.out)
    assert weights == checkpoint.with_name("weights.pt")
    assert checkpoint.stat().st_mtime_ns == before


def test_more_steps_continue_a_run_and_another_recipe_does_not(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    train(tiny_recipe(steps=4), data=tiny_run.data, out=tmp_path)
    train(tiny_recipe(steps=6), data=tiny_run.data, out=tmp_path)
    assert history(tmp_path / "train")[-1]["step"] == 6
    with pytest.raises(DataError, match="another recipe"):
        train(tiny_recipe(matrix_lr=0.5), data=tiny_run.data, out=tmp_path)


@pytest.mark.parametrize("stage", ["train", "quantize"])
def test_killed_at_any_moment_and_started_again_ends_with_the_same_weights(
    stage: str, tmp_path: Path
) -> None:
    write_text(tmp_path, lines=300)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY_YAML)
    data = ["--data", str(tmp_path)] if stage == "train" else []

    def command(name: str, run: str) -> list[str]:
        return [name, str(recipe), "--run", str(tmp_path / run), "--checkpoint-every", "0"]

    def finish(name: str, run: str, extra: list[str]) -> None:
        result = CliRunner().invoke(build_cli(), [*command(name, run), *extra])
        assert result.exit_code == 0, result.output

    if stage == "quantize":
        finish("train", "whole", ["--data", str(tmp_path)])
        shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    finish(stage, "whole", data)
    checkpoint = tmp_path / "killed" / stage / "checkpoint.pt"
    kills = 0
    for wanted in (1, 2):  # the first checkpoint it writes, then some later one
        process = subprocess.Popen(
            [sys.executable, "-m", "service", *command(stage, "killed"), *data],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        seen, last = 0, checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None and seen < 3 * wanted:
            now = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
            seen, last = seen + (now != last), now
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 2
    finish(stage, "killed", data)
    assert_same_weights(checkpoint, tmp_path / "whole" / stage / "checkpoint.pt")


def test_a_damaged_checkpoint_is_named(tiny_run: TinyRun, tmp_path: Path) -> None:
    path = tmp_path / "train" / "checkpoint.pt"
    path.parent.mkdir()
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match=r"checkpoint\.pt: no readable checkpoint"):
        train(tiny_run.recipe, data=tiny_run.data, out=tmp_path)


def test_empty_lines_and_unheld_files_are_no_trouble(tmp_path: Path) -> None:
    write_text(tmp_path, lines=300)
    with gzip.open(tmp_path / "more.txt.gz", "wt", encoding="utf-8") as handle:
        handle.write("the cat sees the dog\n\n ... \n")
    recipe = replace(tiny_recipe().corpus, train=("tiny.txt.gz", "more.txt.gz"))
    corpus = prepare_corpus(recipe, data=tmp_path, out=tmp_path / "corpus")
    ends = int((corpus.tokens("train") == 0).sum())
    assert ends == 300 - 40 - 60 + 1
    missing = replace(recipe, train=("tiny.txt.gz", "gone.txt.gz"))
    with pytest.raises(DataError, match=r"gone\.txt\.gz: cannot be read"):
        prepare_corpus(missing, data=tmp_path, out=tmp_path / "other")


def test_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tiny\.txt\.gz.*--data"):
        train(tiny_recipe(), data=tmp_path, out=tmp_path / "out")
    damaged = gzip.compress(b"the cat")[:10] + b"\xff" * 64
    for content in (b"\x1f\x8bnot gzip", damaged):
        (tmp_path / "tiny.txt.gz").write_bytes(content)
        with pytest.raises(DataError, match="cannot be read|not UTF-8"):
            train(tiny_recipe(), data=tmp_path, out=tmp_path / "out")
    write_text(tmp_path, lines=90)
    with pytest.raises(DataError, match="90 lines are too few"):
        train(tiny_recipe(), data=tmp_path, out=tmp_path / "out")


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_its_checkpoint(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    weights = train(tiny_recipe(steps=2), data=tiny_run.data, out=tmp_path)
    best, checkpoint = weights.read_bytes(), weights.with_name("checkpoint.pt")
    saved = torch.load(checkpoint)
    saved["model"]["gain"].fill_(float("nan"))
    torch.save(saved, checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(
        RecipeError,
        match=r"diverged at step 2: the loss is nan; .* step 2 .*are kept in .*weights\.pt; lower",
    ):
        train(tiny_recipe(steps=4), data=tiny_run.data, out=tmp_path, checkpoint_every_s=0.0)
    assert checkpoint.read_bytes() == before
    assert weights.read_bytes() == best


def test_a_run_that_gets_far_worse_stops_and_keeps_the_best_weights(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    recipe = tiny_recipe(steps=60, other_lr=30.0, eval_every=1, warmup_steps=8)
    with pytest.raises(RecipeError, match=r"diverged at step \d+: dev is at .* are kept in"):
        train(recipe, data=tiny_run.data, out=tmp_path)
    rows = history(tmp_path / "train")
    kept = make_model(recipe)
    kept.load_state_dict(load_weights(tmp_path / "train" / "weights.pt"))
    corpus = open_corpus(recipe.corpus, tmp_path / "corpus")
    nll = mean_nll(next_token_loss(kept, compiled=False), corpus.tokens("dev"), window=48)
    assert nll == pytest.approx(min(row["dev_nll"] for row in rows), abs=1e-3)


def test_dropout_is_drawn_anew_in_each_step_and_measured_without(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    recipe = tiny_recipe(steps=8, dropout=0.3, eval_every=4)
    whole = train(recipe, data=tiny_run.data, out=tmp_path / "whole")
    train(tiny_recipe(steps=4, dropout=0.3), data=tiny_run.data, out=tmp_path / "resumed")
    model = make_model(recipe)
    model.load_state_dict(load_weights(whole))
    corpus = open_corpus(recipe.corpus, tmp_path / "whole" / "corpus")
    loss = next_token_loss(model.eval(), compiled=False)
    nll = mean_nll(loss, corpus.tokens("dev"), window=48)
    assert nll == pytest.approx(history(tmp_path / "whole" / "train")[-1]["dev_nll"], abs=1e-4)
    model.set_dropout(0.3)
    windows = make_packer(recipe, corpus, seed=0).batch(2)
    assert loss(windows).item() == loss(windows).item()
    model.train()
    assert loss(windows).item() != loss(windows).item()


def test_sizes_that_are_not_the_architectures_are_refused() -> None:
    recipe = tiny_recipe()
    with pytest.raises(RecipeError, match="unknown field 'width'"):
        make_model(replace(recipe, model={**recipe.model, "width": 8}))
    with pytest.raises(RecipeError, match="vocab_size is 8; need 64"):
        make_model(replace(recipe, model={**recipe.model, "vocab_size": 8}))
    with pytest.raises(RecipeError, match="architecture is 'rnn'; need one of transformer"):
        make_model(replace(recipe, architecture="rnn"))


# torch's own modules warn of each other when the compiler is first imported.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*:FutureWarning:torch")
def test_a_compiled_loss_is_the_plain_one(tiny_run: TinyRun) -> None:
    model = make_model(tiny_run.recipe)
    model.initialize(seed=0)
    tokens = torch.tensor([5, 6, 7, 0] * 30).numpy().astype("uint16")
    windows = WindowPacker(tokens, window=48).batch(2)
    plain = next_token_loss(model, compiled=False)(windows)
    fused = next_token_loss(model, compiled=True)(windows)
    assert fused.item() == pytest.approx(plain.item(), abs=2e-2)  # bfloat16 rounds elsewhere


def test_the_rate_warms_up_holds_and_falls_to_zero() -> None:
    rates = [rate_factor(step, steps=100, warmup_steps=9, decay_share=0.4) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:60] == [1.0] * 51
    assert rates[80] == pytest.approx(0.5)
    assert rates[100] == 0.0


def test_at_a_restart_the_rate_does_all_of_it_again() -> None:
    def rates(first: int, last: int, **of: Any) -> list[float]:
        return [rate_factor(at, warmup_steps=3, decay_share=0.5, **of) for at in range(first, last)]

    whole = rates(0, 61, steps=60, restarts=(20, 30))
    assert whole[:20] == rates(0, 20, steps=20)
    assert whole[20:30] == rates(0, 10, steps=10)
    assert whole[30:] == rates(0, 31, steps=30)


def test_a_run_that_was_over_goes_on_at_a_restart_as_if_it_had_been_planned(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    apart, whole = tmp_path / "apart", tmp_path / "whole"
    train(tiny_recipe(steps=20), data=tiny_run.data, out=apart)
    longer = tiny_recipe(steps=35, restarts=(20,))
    first = train(longer, data=tiny_run.data, out=apart)
    second = train(longer, data=tiny_run.data, out=whole)
    assert_same_weights(first.with_name("checkpoint.pt"), second.with_name("checkpoint.pt"))
    for restarts in ((0, 20), (35,), (20, 20), (25, 20)):
        with pytest.raises(RecipeError, match="restarts are .*ascending, between 0 and the 35"):
            tiny_recipe(steps=35, restarts=restarts)
