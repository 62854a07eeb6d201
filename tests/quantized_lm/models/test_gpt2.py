"""Claims about GPT-2 and about taking its weights from the transformers library."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from quantized_lm.errors import FormatError, ShapeError
from quantized_lm.models.gpt2 import Gpt2, from_transformers
from quantized_lm.models.gpt2_config import Gpt2Config
from quantized_lm.tree import build_tree

HEADS, LAYERS, DIM, INNER, VOCABULARY, POSITIONS = 2, 2, 8, 20, 13, 12
SEQUENCES = [[3, 4, 5], [3, 4, 6, 6], [7], []]


def random_state() -> dict[str, Tensor]:
    """A state dict as GPT2LMHeadModel saves it: projections are (in, out)."""
    generator = torch.Generator().manual_seed(3)
    shapes = {
        "wte.weight": (VOCABULARY, DIM),
        "wpe.weight": (POSITIONS, DIM),
        "ln_f.weight": (DIM,),
        "ln_f.bias": (DIM,),
    }
    for layer in range(LAYERS):
        for name, (rows, columns) in {
            "attn.c_attn": (DIM, 3 * DIM),
            "attn.c_proj": (DIM, DIM),
            "mlp.c_fc": (DIM, INNER),
            "mlp.c_proj": (INNER, DIM),
        }.items():
            shapes[f"h.{layer}.{name}.weight"] = (rows, columns)
            shapes[f"h.{layer}.{name}.bias"] = (columns,)
        for name in ("ln_1", "ln_2"):
            shapes[f"h.{layer}.{name}.weight"] = shapes[f"h.{layer}.{name}.bias"] = (DIM,)
    state = {
        f"transformer.{name}": 0.5 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }
    return state | {"lm_head.weight": state["transformer.wte.weight"]}


def plain_forward(state: dict[str, Tensor], tokens: Tensor, heads: int = HEADS) -> Tensor:
    """(T,) to (T, V) logits, straight from the library's names."""
    get = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    embedding = get["wte.weight"]

    def norm(x: Tensor, name: str) -> Tensor:
        gain, bias = get[f"{name}.weight"], get[f"{name}.bias"]
        return functional.layer_norm(x, gain.shape, gain, bias)

    def project(x: Tensor, name: str) -> Tensor:
        return x @ get[f"{name}.weight"] + get[f"{name}.bias"]

    x = embedding[tokens] + get["wpe.weight"][: len(tokens)]
    for layer in range(sum(name.endswith("c_attn.weight") for name in get)):
        block = f"h.{layer}"
        qkv = project(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").chunk(3, dim=-1)
        q, k, v = (part.reshape(len(tokens), heads, -1).transpose(0, 1) for part in qkv)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + project(mixed.transpose(0, 1).flatten(1), f"{block}.attn.c_proj")
        inner = project(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        inner = functional.gelu(inner, approximate="tanh")
        x = x + project(inner, f"{block}.mlp.c_proj")
    return norm(x, "ln_f") @ get.get("lm_head.weight", embedding).T


def tree_scores(model: Gpt2) -> list[float]:
    tree = build_tree(SEQUENCES)
    (log_prob,) = model.extend([model.new_state()], [tree.parent[1:]], [tree.token[1:]])
    return [float(log_prob[tree.path(h) - 1].sum()) for h in range(len(SEQUENCES))]


def score(logits: Tensor, sequence: list[int]) -> float:
    log_prob = logits.double().log_softmax(-1)
    return float(log_prob[torch.arange(len(sequence) + 1), [*sequence, 0]].sum())


def test_scores_are_those_of_a_plain_forward_pass() -> None:
    state = random_state()
    expected = [score(plain_forward(state, torch.tensor([0, *s])), s) for s in SEQUENCES]
    assert tree_scores(from_transformers(state, HEADS)) == pytest.approx(expected, abs=1e-4)


def test_windows_are_those_of_a_plain_forward_pass() -> None:
    state, tokens = random_state(), torch.tensor([0, 3, 12, 7, 7])
    model = from_transformers(state, HEADS)
    logits = model.embedding.logits(model(tokens[None], torch.zeros(1, 5)))[0]
    torch.testing.assert_close(logits, plain_forward(state, tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)
def test_scores_are_those_of_the_transformers_library() -> None:
    library = importlib.import_module("transformers")
    config = library.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=POSITIONS,
        n_embd=DIM,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=INNER,
    )
    theirs = library.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        logits = [theirs(torch.tensor([[0, *s]])).logits[0] for s in SEQUENCES]
    expected = [score(part, s) for part, s in zip(logits, SEQUENCES, strict=True)]
    model = from_transformers(theirs.state_dict(), HEADS)
    assert tree_scores(model) == pytest.approx(expected, abs=1e-4)


def test_sizes_are_read_off_the_tensors() -> None:
    state = random_state()
    model = from_transformers(state, HEADS)
    assert model.config == Gpt2Config(VOCABULARY, LAYERS, DIM, HEADS, INNER, POSITIONS - 1)
    # The body alone, as the model without an output layer saves it, with an old version's masks.
    body = {n.removeprefix("transformer."): t for n, t in state.items() if n != "lm_head.weight"}
    body |= {"h.0.attn.bias": torch.ones(1, 1, 12, 12), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    assert tree_scores(from_transformers(body, HEADS)) == tree_scores(model)


def test_the_given_tensors_are_copied() -> None:
    state = random_state()
    model = from_transformers(state, HEADS)
    before = tree_scores(model)
    for tensor in state.values():
        tensor.zero_()
    assert tree_scores(model) == before
    assert all(p.dtype == torch.float32 and p.is_contiguous() for p in model.parameters())


def test_tensors_that_are_no_gpt2_are_refused() -> None:
    state = random_state()
    for missing in ("wte.weight", "h.1.ln_2.bias"):
        rest = {n: t for n, t in state.items() if n != f"transformer.{missing}"}
        with pytest.raises(FormatError, match=rf"'{missing}' is missing"):
            from_transformers(rest, HEADS)
    with pytest.raises(FormatError, match=r"'h\.0\.crossattention\.x' is none of GPT-2's"):
        from_transformers(state | {"transformer.h.0.crossattention.x": torch.zeros(1)}, HEADS)
    with pytest.raises(FormatError, match=r"blocks\.1\.out\.weight \(8, 7\); need \(8, 8\)"):
        from_transformers(state | {"transformer.h.1.attn.c_proj.weight": torch.zeros(7, 8)}, HEADS)
    with pytest.raises(FormatError, match=r"'lm_head\.weight' differs"):
        from_transformers(state | {"lm_head.weight": torch.zeros(VOCABULARY, DIM)}, HEADS)
    with pytest.raises(ShapeError, match="8 over num_heads 3 is no whole number"):
        from_transformers(state, 3)


def test_a_fresh_model_knows_next_to_nothing() -> None:
    model = Gpt2(Gpt2Config(VOCABULARY, LAYERS, DIM, HEADS, INNER, POSITIONS))
    model.initialize(seed=1)
    per_token = [s / (len(q) + 1) for s, q in zip(tree_scores(model), SEQUENCES, strict=True)]
    assert per_token == pytest.approx([-np.log(VOCABULARY)] * len(SEQUENCES), abs=0.2)
