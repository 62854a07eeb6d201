"""Hugging Face transformers on torch: padded batches in float32 or bfloat16, or our tree."""

from __future__ import annotations

import itertools
import platform

import torch
import transformers
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from . import protocol, shapes

_CHUNKS = (10, 20, 50, 100)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _has_bfloat16() -> bool:
    if platform.machine() in ("x86_64", "AMD64"):
        return bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001 - no public name
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - likewise


class Transformers:
    """GPT2LMHeadModel as it ships. Causal attention needs no mask for padding at the right."""

    def __init__(self, task: protocol.Task) -> None:
        torch.set_num_threads(task.threads)
        torch.set_grad_enabled(False)
        self._lists = task.read_lists()
        dtype, _, shape = task.variant.partition(" ")
        if dtype == "bfloat16" and not _has_bfloat16():
            raise SystemExit("this CPU has no bfloat16: torch would emulate it, for hours")
        self._model = load_model(task).to(_DTYPES[dtype])
        self._is_tree = shape == "tree"
        self._chunk = 0
        if not self._is_tree:
            self._chunk = protocol.fastest(_CHUNKS, lambda size: self._padded(self._lists[0], size))

    def describe(self) -> protocol.Description:
        """The version, the parameters' bytes and the batch."""
        parameters = {p.data_ptr(): p.nbytes for p in self._model.parameters()}
        version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        batch = "prefixes shared" if self._is_tree else f"{self._chunk} hypotheses at a time"
        return protocol.Description(version, sum(parameters.values()), batch)

    def score(self, index: int) -> list[float]:
        """Pad or merge, run, gather."""
        if not self._is_tree:
            return self._padded(self._lists[index], self._chunk)
        tree = shapes.tree(self._lists[index])
        tokens, positions, mask, rows, targets = (
            torch.from_numpy(getattr(tree.graph, name)) for name in shapes.ARGUMENTS
        )
        logits = (
            self._model(
                tokens,
                position_ids=positions[None],
                attention_mask=mask[None, None].to(self._model.dtype),
                use_cache=False,
            )
            .logits[0]
            .float()
        )
        return tree.scores((logits[rows, targets] - logits.logsumexp(1)[rows]).numpy())

    def _padded(self, hypotheses: list[list[int]], size: int) -> list[float]:
        scores = torch.zeros(len(hypotheses))
        for chosen in shapes.chunks(hypotheses, size):
            inputs, targets = map(
                torch.from_numpy, shapes.pad([hypotheses[place] for place in chosen])
            )
            logits = self._model(inputs, use_cache=False).logits.float()
            there = targets >= 0
            at_target = logits.gather(2, targets.clamp(min=0)[..., None]).squeeze(2)
            log_prob = at_target - logits.logsumexp(2)
            scores[torch.from_numpy(chosen)] = (log_prob * there).sum(1)
        return scores.tolist()


def load_model(task: protocol.Task) -> GPT2LMHeadModel:
    """The weights of the task in a GPT2LMHeadModel, dropout off."""
    state = load_file(task.weights)
    vocab_size, dim = state["transformer.wte.weight"].shape
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=len(state["transformer.wpe.weight"]),
        n_embd=dim,
        n_inner=state["transformer.h.0.mlp.c_fc.weight"].shape[1],
        n_layer=sum(
            1 for i in itertools.takewhile(lambda i: _block(i) in state, itertools.count())
        ),
        n_head=task.heads,
        bos_token_id=protocol.BOUNDARY_ID,
        eos_token_id=protocol.BOUNDARY_ID,
    )
    model = GPT2LMHeadModel(config)
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    return model.eval()


def _block(index: int) -> str:
    return f"transformer.h.{index}.ln_1.weight"


if __name__ == "__main__":
    protocol.main(Transformers)
