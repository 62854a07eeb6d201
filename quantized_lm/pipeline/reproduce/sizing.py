"""Sizes of a recipe's model from its shapes alone, and the widest one that fits some bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch

from quantized_lm.errors import InputError, RecipeError
from quantized_lm.models.float_model import FloatModel
from quantized_lm.models.layers import matrix_names
from quantized_lm.pipeline.recipe import Recipe
from quantized_lm.pipeline.train import make_model
from quantized_lm.storage import float_bytes

Widen = Callable[[Mapping[str, Any], int], dict[str, Any]]


def num_parameters(recipe: Recipe) -> int:
    """Of the float model, the tied embedding counted once.

    Raises:
        RecipeError: the model's sizes are not those of its architecture.
    """
    return sum(part.numel() for part in _shapes_alone(recipe).parameters())


def float_bytes_of(recipe: Recipe) -> int:
    """Of the file of its float32 weights: what compression is measured against.

    Raises:
        RecipeError: as `num_parameters`.
    """
    model = _shapes_alone(recipe)
    return float_bytes({name: tuple(part.shape) for name, part in model.named_parameters()})


def code_bits(recipe: Recipe, budget_bytes: int, *, scale_bits: float) -> float:
    """Bits per packed weight that a budget leaves for codes, with one scale for each row.

    Raises:
        InputError: nothing is left.
        RecipeError: as `num_parameters`.
    """
    model = _shapes_alone(recipe)
    matrices = matrix_names(model)
    shapes = {name: tuple(part.shape) for name, part in model.named_parameters()}
    weights = sum(math.prod(shapes[name]) for name in matrices)
    rows = sum(shapes[name][0] for name in matrices)
    unpacked = float_bytes({name: shapes[name] for name in shapes if name not in matrices})
    bits = (8 * (budget_bytes - unpacked) - scale_bits * rows) / weights
    if bits <= 0:
        raise InputError(
            f"{budget_bytes} bytes leave {bits:.3f} bits per weight for codes: {unpacked} are "
            f"unpacked and {rows} scales take {scale_bits:g} bits each; give more"
        )
    return bits


def widest_within(recipe: Recipe, budget_bytes: int) -> Recipe:
    """The recipe with the widest model that fits; its depth stays.

    Raises:
        InputError: not even the narrowest fits.
        RecipeError: it is not known what makes this architecture wider.
    """
    if recipe.architecture not in WIDTHS:
        known = ", ".join(WIDTHS)
        raise RecipeError(f"no widths are known of {recipe.architecture!r}; known are {known}")
    narrowest = with_width(recipe, 1)
    if float_bytes_of(narrowest) > budget_bytes:
        raise InputError(
            f"the narrowest {recipe.architecture} takes {float_bytes_of(narrowest)} bytes; "
            f"need at most {budget_bytes}"
        )
    fits, too_wide = 1, 2
    while float_bytes_of(with_width(recipe, too_wide)) <= budget_bytes:
        fits, too_wide = too_wide, 2 * too_wide
    while too_wide - fits > 1:
        middle = (fits + too_wide) // 2
        if float_bytes_of(with_width(recipe, middle)) <= budget_bytes:
            fits = middle
        else:
            too_wide = middle
    return with_width(recipe, fits)


def with_width(recipe: Recipe, width: int) -> Recipe:
    """A recipe whose model is `width` steps of its architecture wide."""
    return replace(recipe, model=WIDTHS[recipe.architecture](recipe.model, width))


def _shapes_alone(recipe: Recipe) -> FloatModel:
    with torch.device("meta"):
        return make_model(recipe)


def _transformer(model: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Even widths, one step 2; the feed-forward keeps its ratio, heads about their width.

    Heads must halve evenly, so there are as many as divide half the width, up to the share that
    keeps them as wide as they are.
    """
    most = max(1, round(2 * width * model["num_heads"] / model["model_dim"]))
    heads = max(count for count in range(1, most + 1) if width % count == 0)
    ffn_dim = max(1, round(2 * width * model["ffn_dim"] / model["model_dim"]))
    return {**model, "model_dim": 2 * width, "num_heads": heads, "ffn_dim": ffn_dim}


def _lstm(model: Mapping[str, Any], width: int) -> dict[str, Any]:
    return {**model, "model_dim": width}


WIDTHS: Mapping[str, Widen] = MappingProxyType({"transformer": _transformer, "lstm": _lstm})
