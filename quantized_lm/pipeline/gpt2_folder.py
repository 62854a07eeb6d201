"""A GPT-2 as the transformers library saves it: config.json, safetensors, vocabulary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from quantized_lm.errors import DataError, FormatError, ShapeError
from quantized_lm.files import reason
from quantized_lm.models.gpt2 import Gpt2, from_transformers
from quantized_lm.pipeline.byte_level import read_byte_level
from quantized_lm.tokenizer import TextRules, Tokenizer

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_ROWS_OF_TOKENS = {"wte.weight", "lm_head.weight"}
_CHUNK_BYTES = 1 << 20
# What our GPT-2 computes, by the field of config.json that says so: what it is where the field is
# left out, and what else comes to the same.
_COMPUTED: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (1e-5,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }
)


@dataclass(frozen=True)
class PretrainedGpt2:
    """A float GPT-2 whose tokens are numbered as everywhere here.

    Attributes:
        sha256: of its files of weights, in the order of their names.
    """

    model: Gpt2
    tokenizer: Tokenizer
    sha256: str


def read_gpt2(folder: Path, rules: TextRules) -> PretrainedGpt2:
    """Read a folder that `save_pretrained` of a GPT2LMHeadModel and its tokenizer wrote.

    Args:
        rules: for the texts to score: how they are to look like those of the training.

    Raises:
        DataError: a file is missing or broken, or it is another model than our GPT-2; names it.
    """
    config = _config(folder / "config.json")
    files = _weight_files(folder)
    state = _state(files)
    vocab_size = next((len(rows) for name, rows in state.items() if name.endswith("wte.weight")), 0)
    if not vocab_size:
        raise DataError(f"{folder}: tensor 'wte.weight' is missing; need a whole GPT-2")
    vocabulary = read_byte_level(
        folder, boundary_id=_boundary(config, folder), vocab_size=vocab_size, rules=rules
    )
    order = torch.from_numpy(vocabulary.order)
    for name in [one for one in state if one.removeprefix("transformer.") in _ROWS_OF_TOKENS]:
        if len(state[name]) != vocab_size:
            raise DataError(f"{folder}: tensor {name!r} has {len(state[name])} rows; need as wte")
        state[name] = state[name][order]
    try:
        model = from_transformers(state, _heads(config, folder))
    except (FormatError, ShapeError) as error:
        raise DataError(f"{folder}: {error}") from None
    return PretrainedGpt2(model, vocabulary.tokenizer, _sha256(files))


def _config(path: Path) -> dict[str, Any]:
    """What config.json says, if our GPT-2 computes it."""
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({reason(error)}); need a folder that save_pretrained of the "
            "transformers library wrote"
        ) from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "gpt2":
        raise DataError(f"{path}: model_type is {kind!r}; need 'gpt2'")
    for field, needed in _COMPUTED.items():
        got = config.get(field, needed[0])
        if got not in needed:
            raise DataError(f"{path}: {field} is {got!r}; need {needed[0]!r}")
    return dict(config)


def _heads(config: Mapping[str, Any], folder: Path) -> int:
    heads = config.get("n_head", 12)
    if type(heads) is not int or heads < 1:
        raise DataError(f"{folder / 'config.json'}: n_head is {heads!r}; need a positive number")
    return heads


def _boundary(config: Mapping[str, Any], folder: Path) -> int:
    """The id of the one symbol that begins texts and ends them."""
    end = config.get("eos_token_id", 50256)
    start = config.get("bos_token_id", end)
    if type(end) is not int or start not in (end, None):
        raise DataError(
            f"{folder / 'config.json'}: bos_token_id is {start!r} and eos_token_id {end!r}; need "
            "one symbol for both, as GPT-2's <|endoftext|>"
        )
    return end


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.exists():
        if not (folder / _WEIGHTS).exists():
            raise DataError(
                f"{folder}: holds no {_WEIGHTS}; write it by save_pretrained of the transformers "
                "library (pickled weights, as pytorch_model.bin, are not read)"
            )
        return [folder / _WEIGHTS]
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        return [folder / Path(name).name for name in sorted(names)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{index}: is no index of weights; write it again") from None


def _state(files: list[Path]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for path in files:
        try:
            state |= load_file(path)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: cannot be read ({reason(error)})") from None
    return state


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as content:
            while chunk := content.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
