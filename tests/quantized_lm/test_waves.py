"""A forward pass in as many calls of the model as cost it nothing, and answers as they come."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from quantized_lm.artifact import bundled_path, load_artifact
from quantized_lm.models.base import Satiable
from quantized_lm.ops import BACKENDS, select_backend
from quantized_lm.scoring import ScoreRequest, prepare, run_batch
from quantized_lm.waves import Running, forward
from tests.fakes import TableModel, fake_loaded
from tests.quantized_lm.models.test_native import load, odd_model

TEXTS = (("the cat sat", "the cat sat on"), ("a dog",), ("it ran far", "it saw"), ("the mat",))
native = pytest.mark.skipif(not BACKENDS["cpu"].is_available, reason="there is no native engine")


@dataclass
class CountedModel(TableModel):
    """Says from how many nodes on a call is as good as a larger one."""

    ample_nodes: int | None = None


@pytest.mark.parametrize(
    ("ample_nodes", "calls"), [(None, [4]), (1, [1] * 4), (9, [2, 1, 1]), (10**6, [4])]
)
def test_a_call_ends_with_the_piece_that_makes_it_ample(
    ample_nodes: int | None, calls: list[int]
) -> None:
    model = CountedModel(ample_nodes=ample_nodes)
    loaded = fake_loaded(model=model)
    work = [prepare(ScoreRequest(texts), loaded) for texts in TEXTS]
    running = [Running(one, model) for one in work]
    sizes = [piece.num_nodes for piece in running]
    assert sizes[:3] == [6, 3, 9]
    for position, (piece, log_prob) in enumerate(forward(running, model)):
        assert piece is running[position]
        assert len(log_prob) == sizes[position]
        assert sum(model.batch_sizes) == next(
            end for end in np.cumsum(calls).tolist() if end > position
        )
        piece.learn(log_prob)
    assert model.batch_sizes == calls
    scores = [piece.result().path_log_prob for piece in running]
    expected = [one.path_log_prob for one in run_batch(work, fake_loaded())]
    assert all(map(np.array_equal, scores, expected))


@native
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("architecture", "rows"), [("gpt2", 48), ("transformer", 48), ("lstm", 0)])
def test_a_transformer_wants_a_block_of_rows_for_each_thread(
    architecture: str, rows: int, threads: int
) -> None:
    model = load(odd_model(architecture), select_backend("cpu", threads=threads))
    assert isinstance(model, Satiable)
    assert model.ample_nodes == (rows * threads or None)


@native
def test_calls_of_the_bundled_model_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_artifact(bundled_path("en-small"), backend="cpu", threads=1)
    lists = [("we went home " * 20, "we went there " * 20), ("yes", "no"), ("well " * 60,)]
    work = [prepare(ScoreRequest(texts), loaded) for texts in (*lists, *lists)]
    assert isinstance(loaded.model, Satiable)
    numbers = []
    for ample_nodes in (loaded.model.ample_nodes, None):
        monkeypatch.setattr(loaded.model, "_ample_nodes", ample_nodes)
        running = [Running(one, loaded.model) for one in work]
        for piece, log_prob in forward(running, loaded.model):
            piece.learn(log_prob)
        numbers.append([piece.result().path_log_prob for piece in running])
    assert all(map(np.array_equal, *numbers))
