"""Claims about the LSTM's own windows, dropout and levels."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from quantized_lm.models.lstm import LockedDropout, Lstm
from quantized_lm.models.lstm_config import GATES, LstmConfig
from quantized_lm.tree import build_tree

CONFIG = LstmConfig(vocab_size=23, num_layers=2, model_dim=32, max_tokens=64)


def trained(seed: int = 5) -> Lstm:
    """Weights large enough that the past matters."""
    model = Lstm(CONFIG)
    model.initialize(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def gradient_of(model: Lstm, name: str) -> Tensor:
    gradient = model.get_parameter(name).grad
    assert gradient is not None
    return gradient


def packed_windows(seed: int) -> tuple[Tensor, Tensor]:
    """Tokens and documents of three windows: some filled, some padded."""
    rng = random.Random(seed)
    document = torch.full((3, 40), -1, dtype=torch.int32)
    for row in document:
        start = number = 0
        while start < 40 and rng.random() < 0.9:
            length = rng.randrange(1, 20)
            row[start : start + length] = number
            start, number = start + length, number + 1
    return torch.randint(23, (3, 40), generator=torch.Generator().manual_seed(seed)), document


def require_documents_as_alone(model: Lstm, tokens: Tensor, document: Tensor) -> None:
    together = model(tokens, document)
    for row, numbers in enumerate(document):
        for number in numbers.unique():
            where = numbers == number
            if number >= 0:
                alone = model(tokens[row : row + 1, where], torch.zeros(1, int(where.sum())))
                assert torch.allclose(together[row, where], alone[0], atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_every_document_of_a_window_is_run_as_if_alone(seed: int) -> None:
    with torch.no_grad():
        require_documents_as_alone(trained(), *packed_windows(seed))


@pytest.mark.parametrize("seed", range(3))
def test_so_it_is_where_torch_has_no_fused_kernel(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    tokens, document = packed_windows(seed)
    with torch.no_grad():
        fused = trained()(tokens, document)
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
        require_documents_as_alone(trained(), tokens, document)
        with torch.autocast("cpu", torch.bfloat16):
            unfused = trained()(tokens, document)
    assert torch.allclose(fused[document >= 0], unfused[document >= 0], atol=1e-5)


def test_no_gradient_reaches_another_document() -> None:
    model = trained()
    tokens = torch.tensor([[3, 4, 5, 6, 7, 8]])
    model(tokens, torch.tensor([[0, 0, 1, 1, 2, 2]]))[:, 2:4].sum().backward()
    rows = gradient_of(model, "embedding.weight")
    assert rows[5:7].abs().amin() > 0
    assert rows.abs().sum() == rows[5:7].abs().sum()


def counting_model() -> Lstm:
    """One layer whose c grows by 0.001 with every token and never shrinks."""
    model = Lstm(LstmConfig(vocab_size=2, num_layers=1, model_dim=2, max_tokens=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for gate, bias in zip(GATES, (0.0, 30.0, 0.002, 30.0), strict=True):
            model.get_parameter(f"layers.0.input.{gate}.bias").fill_(bias)
    return model


def test_small_steps_of_the_cell_state_add_up_under_autocast() -> None:
    tokens = torch.zeros(1, 1000, dtype=torch.int64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        hidden = counting_model()(tokens, torch.zeros_like(tokens))
    assert hidden[0, -1].tolist() == pytest.approx([np.tanh(1.0)] * 2, rel=0.01)


def test_autocast_changes_hidden_states_little_and_reaches_every_parameter() -> None:
    model, (tokens, document) = trained(), packed_windows(1)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(tokens, document)
    hidden.float().square().sum().backward()
    assert all(gradient_of(model, n).abs().sum() > 0 for n, _ in model.named_parameters())
    expected = trained()(tokens, document)
    kept = document >= 0
    assert (hidden - expected)[kept].abs().mean() < 0.01 * expected[kept].abs().mean()


def test_a_gradient_can_be_had_in_eval_mode() -> None:
    gradients = []
    for model in (trained().train(), trained().eval()):
        model(*packed_windows(1)).square().sum().backward()
        gradients.append(gradient_of(model, "layers.0.recurrent.f.weight"))
    assert torch.equal(*gradients)


# torch hides this warning of its own, but not from pytest, which makes warnings errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_loss_is_the_loss_and_is_compiled_once() -> None:
    model = trained()
    run = model.runner(compiled=True)

    def loss(tokens: Tensor, document: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.embedding.logits(run(tokens, document))
        return functional.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())

    def gradient(batch_loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        model.zero_grad()
        for tokens, document in batches:
            torch.autograd.backward(batch_loss(tokens, document))
        return gradient_of(model, "embedding.weight").clone()

    compiled = torch.compile(loss, dynamic=False, backend="aot_eager")
    torch.autograd.backward(compiled(*packed_windows(9)))
    one_document = torch.zeros(3, 40, dtype=torch.int32)
    batches = [(packed_windows(seed)[0], one_document) for seed in range(3)]
    batches += [packed_windows(seed) for seed in range(3)]
    with torch.compiler.set_stance("fail_on_recompile"):
        got = gradient(compiled)
    assert torch.allclose(got, gradient(loss), rtol=0.02, atol=1e-3)


class Tripled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 3 * weight


def test_a_gate_matrix_may_be_parametrized() -> None:
    model, (tokens, document) = Lstm(CONFIG), packed_windows(2)
    model.initialize(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1 if name.startswith("layers") and parameter.ndim == 2 else 3)
    for module in list(model.layers.modules()):
        if isinstance(module, nn.Linear):
            parametrize.register_parametrization(module, "weight", Tripled())
    hidden = model(tokens, document)
    hidden.square().sum().backward()
    assert torch.allclose(hidden, trained()(tokens, document), atol=1e-6)
    gradient = gradient_of(model, "layers.1.recurrent.o.parametrizations.weight.original")
    assert gradient.abs().sum() > 0


def test_dropout_locks_one_mask_per_row_for_all_time_steps() -> None:
    torch.manual_seed(1)
    drop = LockedDropout(0.25)
    x = torch.rand(50, 16, 64) + 1
    dropped = drop(x)
    is_kept = dropped != 0
    assert torch.equal(is_kept, is_kept[:1].expand_as(x))
    assert not torch.equal(is_kept[:, 0], is_kept[:, 1])
    assert is_kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert torch.allclose(dropped[is_kept], x[is_kept] / 0.75)
    assert drop.eval()(x) is x
    assert LockedDropout(0.0)(x) is x


def test_dropout_is_set_for_the_whole_model_and_acts_in_training_alone() -> None:
    model, (tokens, document) = trained(), packed_windows(3)
    without = model(tokens, document)
    model.set_dropout(0.5)
    assert not torch.allclose(model(tokens, document), without)
    assert torch.equal(model.eval()(tokens, document), without)


def test_weights_are_drawn_by_the_seed_and_forget_gates_start_open() -> None:
    first, again, other = Lstm(CONFIG), Lstm(CONFIG), Lstm(CONFIG)
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        model.initialize(seed)
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    biases = {n: p for n, p in first.named_parameters() if p.ndim == 1}
    assert len(biases) == 8
    assert all(torch.all(p == float(".f." in name)) for name, p in biases.items())


def test_nodes_of_one_depth_are_run_together_whatever_their_tree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = trained()
    sizes: list[int] = []
    embed = model.embedding.embed

    def counted(tokens: Tensor) -> Tensor:
        sizes.append(len(tokens))
        return embed(tokens)

    monkeypatch.setattr(model.embedding, "embed", counted)
    trees = [build_tree([[3, 4, 5], [3, 4, 6], [7]]), build_tree([[9, 9]])]
    states = [model.new_state() for _ in trees]
    model.extend(states, [t.parent[1:] for t in trees], [t.token[1:] for t in trees])
    assert sizes == [2, 3, 2, 2]  # roots; 3, 7 and 9; 4 and 9; 5 and 6
