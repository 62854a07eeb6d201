"""The process that is timed for us; answers as `peers.protocol` says.

    python -m quantized_lm.bench.own TASK

Everything from token ids, or from texts for a bundled model, to scores is timed: the tree, the
forward pass and the sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from quantized_lm.artifact import bundled_path, load_artifact
from quantized_lm.bench.peers import protocol
from quantized_lm.bench.weights import load_gpt2, load_packed_gpt2
from quantized_lm.models.base import LanguageModel
from quantized_lm.models.layers import PackedEmbedding, PackedLinear, TiedEmbedding
from quantized_lm.ops import PackedWeight, select_backend
from quantized_lm.ops.embedding import embed
from quantized_lm.scoring import ScoreRequest, score_lists
from quantized_lm.tree import build_tree

FLOAT = "float32"
REFERENCE = "reference"


class OwnGpt2:
    """A random GPT-2 in torch's float32 or packed."""

    def __init__(self, task: protocol.Task) -> None:
        torch.set_num_threads(task.threads)
        self._lists = task.read_lists()
        weights = Path(task.weights)
        self._model: LanguageModel
        if task.variant == FLOAT:
            self._model = load_gpt2(weights, task.heads)
            self._setting, self._size = "torch float32", weights.stat().st_size
            return
        path = packed_path(Path(task.cache), task.variant)
        backend = select_backend(task.backend, threads=task.threads)
        self._model = load_packed_gpt2(weights, task.heads, path, backend)
        self._setting = f"{backend.name}/{backend.variant}"
        self._size = path.stat().st_size

    def describe(self) -> protocol.Description:
        """The version, the packed file's size and the kernels."""
        return protocol.Description(_version(), self._size, self._setting)

    def score(self, index: int) -> list[float]:
        """Tree, forward, sums."""
        return score_tokens(self._model, self._lists[index])


class OwnBundled:
    """A model that ships with the package, from texts to scores; `variant` names it.

    Backend FLOAT is torch with the dequantized matrices, as if they had never been packed.
    """

    def __init__(self, task: protocol.Task) -> None:
        torch.set_num_threads(task.threads)
        self._requests = [ScoreRequest(tuple(texts)) for texts in task.read_texts()]
        is_float = task.backend == FLOAT
        self._loaded = load_artifact(
            bundled_path(task.variant),
            backend=REFERENCE if is_float else task.backend,
            threads=task.threads,
        )
        self._setting = "torch float32" if is_float else self._loaded.backend
        if is_float:
            _unpack(self._loaded.model)

    def describe(self) -> protocol.Description:
        """The version, the artifact's size and the kernels."""
        size = self._loaded.manifest.size_bytes
        return protocol.Description(_version(), size, self._setting)

    def score(self, index: int) -> list[float]:
        """Tokens, tree, forward, sums."""
        (scores,) = score_lists([self._requests[index]], self._loaded)
        return [float(log_prob) for log_prob in scores.log_prob]


def create(task: protocol.Task) -> protocol.System:
    """The system a task asks for: without weights it is a bundled model."""
    return OwnGpt2(task) if task.weights else OwnBundled(task)


def score_tokens(model: LanguageModel, hypotheses: Sequence[Sequence[int]]) -> list[float]:
    """Log P of each hypothesis and `</s>`, nats."""
    tree = build_tree(hypotheses)
    (log_prob,) = model.extend([model.new_state()], [tree.parent[1:]], [tree.token[1:]])
    path_log_prob = log_prob[tree.path_node - 1].astype(np.float64)
    starts = np.cumsum(tree.path_length) - tree.path_length
    return np.add.reduceat(path_log_prob, starts).tolist()  # type: ignore[no-any-return]


def _unpack(model: LanguageModel) -> None:
    """Put float layers in the place of the reference backend's, which dequantize at every call."""
    assert isinstance(model, nn.Module)
    for path, module in list(model.named_modules()):
        if isinstance(module, PackedLinear):
            num_rows, num_columns = module.weight.shape
            linear = nn.Linear(num_columns, num_rows, bias=module.bias is not None)
            linear.weight.data = _dequantize(module.weight)
            if module.bias is not None:
                linear.bias.data = module.bias
            model.set_submodule(path, linear)
        elif isinstance(module, PackedEmbedding):
            embedding = TiedEmbedding(*module.weight.shape)
            embedding.weight.data = _dequantize(module.weight)
            model.set_submodule(path, embedding)


def _dequantize(weight: PackedWeight) -> Tensor:
    return embed(weight, torch.arange(weight.shape[0]))


def packed_path(cache: Path, packing: str) -> Path:
    """Where a packing of the cache's weights is kept."""
    return cache / f"secondpass.{packing.replace(', ', '-').replace(' ', '-')}.safetensors"


def _version() -> str:
    return f"secondpass {version('secondpass')}"


if __name__ == "__main__":
    protocol.main(create)
