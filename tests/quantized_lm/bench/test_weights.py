"""Claims about the random models, how they are kept, and what scores them for us."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from quantized_lm.bench.own import FLOAT, OwnBundled, OwnGpt2, create, packed_path
from quantized_lm.bench.peers.protocol import Task
from quantized_lm.bench.rounds import agreement
from quantized_lm.bench.weights import (
    PACKINGS,
    QUICK_SIZE,
    count_multiplied,
    count_parameters,
    load_gpt2,
    random_gpt2,
    read_packed,
    write_gpt2,
    write_packed,
)

from .conftest import TINY


def test_logits_spread_as_those_of_a_trained_model() -> None:
    state = random_gpt2(QUICK_SIZE)
    hidden = torch.randn(200, QUICK_SIZE.model_dim, generator=torch.Generator().manual_seed(1))
    hidden = torch.nn.functional.layer_norm(hidden, hidden.shape[1:])
    logits = hidden @ state["transformer.wte.weight"].T
    assert float(logits.std()) == pytest.approx(2.5, rel=0.05)


def test_matrices_are_what_nodes_are_multiplied_with(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    write_gpt2(QUICK_SIZE, path)
    dim, ffn_dim = QUICK_SIZE.model_dim, QUICK_SIZE.ffn_dim
    of_layer = 4 * dim * dim + 2 * dim * ffn_dim
    expected = QUICK_SIZE.vocab_size * dim + QUICK_SIZE.num_layers * of_layer
    assert count_multiplied(path) == expected < count_parameters(path)


def test_weights_are_drawn_once(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    write_gpt2(TINY, path)
    first = path.stat()
    write_gpt2(TINY, path)
    assert path.stat().st_mtime_ns == first.st_mtime_ns
    assert count_parameters(path) == sum(
        parameter.numel() for parameter in load_gpt2(path, TINY.num_heads).parameters()
    )


def test_body_and_output_have_the_formats_of_the_packing(task: Task, tmp_path: Path) -> None:
    path = packed_path(tmp_path, "1bit, output 4bit")
    packing = PACKINGS["1bit, output 4bit"]
    write_packed(Path(task.weights), TINY.num_heads, packing, path)
    packed, plain = read_packed(path)
    assert {name: tensor.format for name, tensor in packed.items()} == {
        "embedding.weight": "4bit",
        **{f"blocks.0.{name}.weight": "1bit" for name in ("qkv", "out", "up", "down")},
    }
    model = load_gpt2(Path(task.weights), TINY.num_heads)
    assert set(plain) | set(packed) == {name for name, _ in model.named_parameters()}
    written = path.stat().st_mtime_ns
    write_packed(Path(task.weights), TINY.num_heads, packing, path)
    assert path.stat().st_mtime_ns == written


def test_packed_scores_are_near_the_float_ones(task: Task) -> None:
    float_model = create(task)
    packed = create(replace(task, variant="4bit", backend="reference"))
    assert isinstance(packed, OwnGpt2)
    scores, others = ([system.score(index) for index in (0, 1)] for system in (packed, float_model))
    assert 0 < agreement(scores, others).max_difference < 0.2
    assert packed.describe().setting.startswith("reference/")
    assert packed.describe().model_bytes < float_model.describe().model_bytes


def test_a_bundled_model_scores_texts(tmp_path: Path) -> None:
    lists = tmp_path / "texts.json"
    lists.write_text(json.dumps([["the cat sat", "cat the sat the"]]))
    bundled = create(Task("", str(lists), 0, 1, "en-small", "", "reference"))
    assert isinstance(bundled, OwnBundled)
    likely, unlikely = bundled.score(0)
    unpacked = create(Task("", str(lists), 0, 1, "en-small", "", FLOAT))
    assert unpacked.score(0) == pytest.approx([likely, unlikely], rel=1e-5)
    assert unpacked.describe().setting == "torch float32"
    assert 0 > likely > unlikely
    assert bundled.describe().model_bytes > 1_000_000
    assert np.isfinite([likely, unlikely]).all()
