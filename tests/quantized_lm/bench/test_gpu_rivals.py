"""What is compared with on a GPU computes what we compute; here on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from quantized_lm.artifact import load_artifact
from quantized_lm.bench.gpu_lists import cut, write_random
from quantized_lm.bench.gpu_rivals import gpt2_rivals, lstm_rival
from quantized_lm.bench.lists import made_up_lists
from quantized_lm.bench.own import score_tokens
from quantized_lm.bench.random_artifact import as_texts, write_random_artifact
from quantized_lm.bench.weights import POSITIONS, Size, load_gpt2
from quantized_lm.models.lstm import Lstm
from quantized_lm.models.lstm_config import LstmConfig
from quantized_lm.ops import BACKENDS
from quantized_lm.scoring import ScoreRequest, score_lists
from quantized_lm.tree import build_tree

CPU = torch.device("cpu")
SIZE = Size(1, 32, 1, 64, vocab_size=62, lists=2, hypotheses=5)
(LIST, OTHER) = cut(made_up_lists(2, 62, hypotheses=5), 6)


def test_the_lstm_in_bfloat16_is_the_lstm() -> None:
    model = Lstm(LstmConfig(62, 2, 32, POSITIONS))
    model.initialize(seed=0)
    tree = build_tree(LIST)
    (expected,) = model.extend([model.new_state()], [tree.parent[1:]], [tree.token[1:]])
    actual = lstm_rival(model, CPU).prepare(LIST)()
    assert isinstance(actual, torch.Tensor)
    np.testing.assert_allclose(actual.numpy(), expected, atol=0.02)
    assert np.ptp(expected) > 0.1


def test_transformers_score_the_same_padded_and_on_our_tree(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    weights, _ = write_random("tiny", SIZE, tmp_path)
    expected = score_tokens(load_gpt2(weights, SIZE.num_heads), LIST)
    padded, on_tree = gpt2_rivals(SIZE, POSITIONS, CPU)
    np.testing.assert_allclose(np.array(padded.prepare(LIST)()), expected, rtol=0.02)
    nodes = on_tree.prepare(LIST)()
    assert isinstance(nodes, torch.Tensor)
    assert nodes.shape == (build_tree(LIST).num_scored,)
    assert nodes.sum().item() < 0


def test_a_random_model_can_be_served(tmp_path: Path) -> None:
    if not BACKENDS["cpu"].is_available:
        pytest.skip("the native module is missing")
    artifact = tmp_path / "artifact"
    files = write_random("tiny", SIZE, tmp_path)
    write_random_artifact("tiny", SIZE.num_heads, files, artifact)
    written = (artifact / "manifest.json").stat().st_mtime_ns
    write_random_artifact("tiny", SIZE.num_heads, files, artifact)
    assert (artifact / "manifest.json").stat().st_mtime_ns == written
    loaded = load_artifact(artifact, threads=1)
    assert loaded.residency == "packed"
    (scores,) = score_lists([ScoreRequest(as_texts(OTHER))], loaded)
    np.testing.assert_allclose(scores.log_prob, score_tokens(loaded.model, OTHER), atol=1e-6)
    assert not scores.oov


def test_lists_are_cut_at_a_length() -> None:
    assert max(map(len, LIST)) == 6
    assert cut([LIST], None) == [LIST]
