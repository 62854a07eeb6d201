from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantized_lm.errors import FormatError, ShapeError
from quantized_lm.models.layers import load_packed, matrix_names
from quantized_lm.models.transformer import GATHERED_KEYS, Transformer, TransformerConfig
from quantized_lm.ops import BACKENDS, select_backend
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.rtn import round_to_nearest
from quantized_lm.tree import TokenTree, build_tree

CONFIG = TransformerConfig(
    vocab_size=23, num_layers=2, model_dim=32, num_heads=2, ffn_dim=48, max_tokens=64
)
SEQUENCES = st.lists(st.lists(st.integers(1, 22), max_size=9), min_size=1, max_size=6)


def make_model() -> Transformer:
    """Random weights, the zero-initialized outputs and the mixes too."""
    model = Transformer(CONFIG)
    model.initialize(seed=5)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    return model.requires_grad_(requires_grad=False)


MODEL = make_model()


def plain(model: Transformer, context: Sequence[int], sequence: Sequence[int]) -> float:
    """log P(sequence, </s> | context) by one forward pass over the whole sentence."""
    ids = [0, *context, *sequence, 0]
    tokens = torch.tensor([ids[:-1]])
    hidden = model(tokens, torch.zeros_like(tokens))
    log_prob = model.embedding.logits(hidden)[0].log_softmax(-1)
    return sum(log_prob[i, ids[i + 1]].item() for i in range(len(context), len(ids) - 1))


def tree_scores(model: Transformer, trees: Sequence[TokenTree]) -> list[list[float]]:
    log_probs = model.extend(
        [model.new_state(t.token[1 : t.base + 1].tolist()) for t in trees],
        [t.parent[t.base + 1 :] for t in trees],
        [t.token[t.base + 1 :] for t in trees],
    )
    return [
        [float(part[t.path(h) - t.base - 1].sum()) for h in range(len(t.leaf))]
        for t, part in zip(trees, log_probs, strict=True)
    ]


@settings(deadline=None, max_examples=30)
@given(st.lists(SEQUENCES, min_size=1, max_size=3), st.lists(st.integers(0, 22), max_size=4))
def test_a_batch_of_trees_scores_as_plain_forward_passes(
    lists: list[list[list[int]]], context: list[int]
) -> None:
    trees = [build_tree(sequences, context=context) for sequences in lists]
    for sequences, scores in zip(lists, tree_scores(MODEL, trees), strict=True):
        expected = [plain(MODEL, context, sequence) for sequence in sequences]
        assert scores == pytest.approx(expected, abs=1e-4)


def test_a_tree_extended_later_gives_the_numbers_of_one_built_at_once() -> None:
    whole = build_tree([[3, 4, 5], [3, 4, 6], [7]])
    expected = MODEL.extend([MODEL.new_state()], [whole.parent[1:]], [whole.token[1:]])[0]
    other = build_tree([[9, 9]])
    states = [MODEL.new_state(), MODEL.new_state()]
    got = []
    for start, end in ((1, 3), (3, 4), (4, whole.num_nodes)):
        parts = MODEL.extend(
            states,
            [whole.parent[start:end], other.parent[1:] if start == 3 else np.zeros(0, np.int32)],
            [whole.token[start:end], other.token[1:] if start == 3 else np.zeros(0, np.int32)],
        )
        got.append(parts[0])
    assert np.concatenate(got) == pytest.approx(expected, abs=1e-5)


def test_only_nodes_with_children_are_run_and_each_once() -> None:
    state = MODEL.new_state()
    MODEL.extend([state], [np.array([0, 1, 1], np.int32)], [np.array([4, 5, 6], np.int32)])
    assert [slot >= 0 for slot in state.slot] == [True, True, False, False]
    MODEL.extend([state], [np.array([3], np.int32)], [np.array([2], np.int32)])
    assert [slot >= 0 for slot in state.slot] == [True, True, False, True, False]
    assert state.hidden is not None
    assert len(state.hidden) == 3


def test_nothing_to_add_is_nothing_to_score() -> None:
    empty = np.zeros(0, np.int32)
    assert MODEL.extend([MODEL.new_state()], [empty], [empty])[0].shape == (0,)


def test_a_tree_with_more_nodes_than_attention_takes_at_a_time_is_scored_right() -> None:
    sequences = [[a, b, 1] for a in range(1, 23) for b in range(1, 23)]
    tree = build_tree(sequences)
    assert np.unique(tree.parent).size * 3 > GATHERED_KEYS  # so paths fall into several groups
    scores = tree_scores(MODEL, [tree])[0]
    for index in (0, 150, 483):
        assert scores[index] == pytest.approx(plain(MODEL, [], sequences[index]), abs=1e-4)


def test_a_document_does_not_see_its_neighbor_in_the_window() -> None:
    tokens = torch.tensor([[0, 3, 4, 0, 5, 6]])
    together = MODEL(tokens, torch.tensor([[0, 0, 0, 1, 1, 1]]))
    alone = MODEL(tokens[:, 3:], torch.zeros(1, 3))
    assert together[:, 3:].numpy() == pytest.approx(alone.numpy(), abs=1e-5)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_packed_model_scores_as_a_float_model_of_the_unpacked_weights(name: str) -> None:
    entry = BACKENDS[name]
    if not entry.is_available:
        pytest.skip(f"{name}: {entry.why_unavailable()}")
    floats, packed_model = make_model(), make_model()
    parameters = dict(floats.named_parameters())
    packed = {
        matrix: round_to_nearest(parameters[matrix].numpy(), Grid.named("4bit", "normal"))
        for matrix in matrix_names(floats)
    }
    rest = {n: p.numpy() for n, p in parameters.items() if n not in packed}
    load_packed(packed_model, packed, rest, select_backend(name))
    for matrix, tensor in packed.items():
        parameters[matrix].copy_(torch.from_numpy(tensor.dequantize()))
    sequences = [[3, 4, 5], [3, 9], []]
    expected = [plain(floats, [], sequence) for sequence in sequences]
    assert tree_scores(packed_model, [build_tree(sequences)])[0] == pytest.approx(
        expected, rel=1e-5
    )


def test_tensors_that_do_not_fit_the_architecture_are_refused() -> None:
    model = make_model()
    parameters = {n: p.numpy() for n, p in model.named_parameters()}
    grid = Grid.named("4bit")
    packed = {n: round_to_nearest(parameters[n], grid) for n in matrix_names(model)}
    rest = {n: p for n, p in parameters.items() if n not in packed}
    backend = select_backend("reference")
    missing = {n: t for n, t in packed.items() if n != "blocks.1.up.weight"}
    with pytest.raises(FormatError, match=r"blocks\.1\.up\.weight"):
        load_packed(make_model(), missing, rest, backend)
    unpacked = {**rest, "blocks.1.up.weight": parameters["blocks.1.up.weight"]}
    with pytest.raises(FormatError, match=r"blocks\.1\.up\.weight"):
        load_packed(make_model(), missing, unpacked, backend)
    short = {**rest, "gain": np.ones(31, np.float32)}
    with pytest.raises(FormatError, match=r"'gain' is \(31,\); need \(32,\)"):
        load_packed(make_model(), packed, short, backend)


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(ShapeError, match="no even number"):
        TransformerConfig(8, 1, 30, 4, 8, 8)
    with pytest.raises(ShapeError, match="need one shape"):
        MODEL.extend([MODEL.new_state()], [np.zeros(1, np.int32)], [np.zeros(2, np.int32)])
