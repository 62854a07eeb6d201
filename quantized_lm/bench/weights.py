"""Random GPT-2s to time with: one set of weights for everybody, and our packings of it on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_torch_file
from torch import Tensor

from quantized_lm.bench.lists import Tokens, made_up_lists
from quantized_lm.models.base import LanguageModel
from quantized_lm.models.gpt2 import Gpt2, from_transformers
from quantized_lm.models.layers import load_packed, matrix_names
from quantized_lm.ops import Backend
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.rtn import round_to_nearest
from quantized_lm.quant.tensor import QuantizedTensor

# So that guesses are about as sure as a trained model's: standard deviation of a logit.
_LOGIT_STD = 2.5
POSITIONS = 128


@dataclass(frozen=True)
class Size:
    """A GPT-2 and the made-up lists it is timed on.

    Attributes:
        lists: how many. hypotheses: in each.
        seed: draws the lists; chosen so that contexts and tree nodes have the wanted means.
    """

    num_layers: int
    model_dim: int
    num_heads: int
    ffn_dim: int
    vocab_size: int = 16384
    lists: int = 6
    hypotheses: int = 100
    seed: int = 0

    def draw_lists(self) -> list[list[Tokens]]:
        """Its lists of token ids."""
        return made_up_lists(
            self.lists, self.vocab_size, hypotheses=self.hypotheses, seed=self.seed
        )


SIZES: Mapping[str, Size] = MappingProxyType(
    {
        # 27.4 M and 97.7 M parameters; about 2140 contexts and 630 tree nodes a list.
        "s": Size(6, 512, 8, 2048, lists=6, seed=12),
        "b": Size(12, 768, 12, 3072, lists=3, seed=95),
    }
)
QUICK_SIZE = Size(1, 64, 2, 128, vocab_size=512, lists=2, hypotheses=20)


@dataclass(frozen=True)
class Packing:
    """How a model's matrices are packed.

    Attributes:
        body: format of the projections. output: of the tied embedding; keys of FORMATS.
        group_size: columns that share a scale, in both; None for one scale per row.
    """

    body: str
    output: str
    group_size: int | None = None


PACKINGS: Mapping[str, Packing] = MappingProxyType(
    {
        "8bit": Packing("8bit", "8bit"),
        "4bit": Packing("4bit", "4bit"),
        "4bit group 64": Packing("4bit", "4bit", 64),
        "2bit": Packing("2bit", "2bit"),
        "ternary": Packing("ternary", "ternary"),
        "1bit": Packing("1bit", "1bit"),
        "2bit, output 4bit": Packing("2bit", "4bit"),
        "1bit, output 4bit": Packing("1bit", "4bit"),
    }
)


def random_gpt2(size: Size, seed: int = 0) -> dict[str, Tensor]:
    """Weights with the names of a Hugging Face GPT2LMHeadModel, float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float) -> Tensor:
        return std * torch.randn(*shape, generator=generator)

    dim, residual = size.model_dim, (2 * size.num_layers) ** -0.5
    projections = {
        "attn.c_attn": (dim, 3 * dim, 1.0),
        "attn.c_proj": (dim, dim, residual),
        "mlp.c_fc": (dim, size.ffn_dim, 1.0),
        "mlp.c_proj": (size.ffn_dim, dim, residual),
    }
    state = {
        "transformer.wte.weight": normal(size.vocab_size, dim, std=_LOGIT_STD * dim**-0.5),
        "transformer.wpe.weight": normal(POSITIONS, dim, std=dim**-0.5),
    }
    for layer in range(size.num_layers):
        block = f"transformer.h.{layer}"
        for norm in ("ln_1", "ln_2"):
            state[f"{block}.{norm}.weight"] = 1 + normal(dim, std=0.1)
            state[f"{block}.{norm}.bias"] = normal(dim, std=0.02)
        for name, (inputs, outputs, std) in projections.items():
            state[f"{block}.{name}.weight"] = normal(inputs, outputs, std=std * inputs**-0.5)
            state[f"{block}.{name}.bias"] = normal(outputs, std=0.02)
    state["transformer.ln_f.weight"] = torch.ones(dim)
    state["transformer.ln_f.bias"] = torch.zeros(dim)
    return state


def write_gpt2(size: Size, path: Path) -> None:
    """Draw the weights of a size and keep them, unless they are there."""
    if not path.exists():
        beside = path.with_name(f"{path.name}.partial")
        save_torch_file(random_gpt2(size), beside)
        beside.replace(path)


def write_packed(weights: Path, num_heads: int, packing: Packing, path: Path) -> None:
    """Round the weights to a packing and keep it, unless it is there."""
    if path.exists():
        return
    model = from_transformers(load_file(weights), num_heads)
    matrices = matrix_names(model)
    arrays: dict[str, NDArray[np.generic]] = {}
    entries: dict[str, list[object]] = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy()
        if name not in matrices:
            arrays[name] = weight
            continue
        format_name = packing.output if name == "embedding.weight" else packing.body
        tensor = round_to_nearest(weight, Grid.named(format_name, group_size=packing.group_size))
        arrays[f"{name}.words"] = tensor.words
        arrays[f"{name}.scale"] = tensor.scale
        arrays[f"{name}.levels"] = tensor.levels
        entries[name] = [tensor.format, tensor.shape, tensor.group_size]
    beside = path.with_name(f"{path.name}.partial")
    save_file(arrays, beside, {"packed": json.dumps(entries)})
    beside.replace(path)


def read_packed(
    path: Path,
) -> tuple[dict[str, QuantizedTensor], dict[str, NDArray[np.float32]]]:
    """The packed tensors of a file, and its other parameters."""
    with safe_open(path, "numpy") as file:
        entries = json.loads(file.metadata()["packed"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    packed = {}
    for name, (format_name, shape, group_size) in entries.items():
        parts = (arrays.pop(f"{name}.{part}") for part in ("words", "scale", "levels"))
        packed[name] = QuantizedTensor(format_name, tuple(shape), group_size, *parts)
    return packed, arrays


def count_parameters(weights: Path) -> int:
    """Numbers in a file of weights."""
    with safe_open(weights, "numpy") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def count_multiplied(weights: Path) -> int:
    """Numbers of the matrices that every node is multiplied with; the tied embedding is one."""
    with safe_open(weights, "numpy") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return sum(
        math.prod(shape)
        for name, shape in shapes.items()
        if len(shape) == 2 and not name.endswith("wpe.weight")
    )


def load_gpt2(weights: Path, num_heads: int) -> Gpt2:
    """The float model."""
    return from_transformers(load_file(weights), num_heads)


def load_packed_gpt2(weights: Path, num_heads: int, path: Path, backend: Backend) -> LanguageModel:
    """A packed model; the float weights only say what its sizes are."""
    packed, plain = read_packed(path)
    return load_packed(load_gpt2(weights, num_heads), packed, plain, backend)
