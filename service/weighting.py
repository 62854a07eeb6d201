"""What each term of a request counts for: given fields, then the preset, then the model's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from quantized_lm.artifact import LoadedModel
from quantized_lm.combine import Weights
from quantized_lm.errors import InputError
from quantized_lm.presets import preset_weights
from service.schemas import LmRequest, WeightChoice

DEFAULT_WEIGHTS: Mapping[str, float] = {"am_scale": 1.0, "lm_scale": 0.5}
_NOT_WEIGHTS = {"preset", "parameters", "lm_scale"}
_CHOICE = {"weights", "lms"}
MOST_KNOWN = 256  # resolved weights that are remembered


class KnownWeights:
    """Resolved weights, and which choice over which defaults they came of: few differ.

    Knows models by their revision and defaults alone: one that is replaced is not kept alive, nor
    are its defaults taken for those of the next.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], Weights] = {}

    def of(self, request: LmRequest, models: Sequence[LoadedModel]) -> Weights:
        """What `resolve_weights` gives, which is remembered.

        Raises:
            InputError: as `resolve_weights`.
        """
        says_something = not _CHOICE.isdisjoint(request.model_fields_set)
        choice = request.model_dump_json(include=_CHOICE) if says_something else ""
        key = (choice, *(f"{m.revision} {m.manifest.default_weights}" for m in models))
        known = self._known.get(key)
        if known is None:
            known = resolve_weights(request, models)
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[key] = known
        return known


def resolve_weights(request: LmRequest, models: Sequence[LoadedModel]) -> Weights:
    """The weights of a request over its models, in the order it names them.

    Raises:
        InputError: the preset or a weight is unusable; the pointer is into the request.
    """
    choice = request.weights
    base = _base(choice, models[0])
    given = choice.model_dump(exclude=_NOT_WEIGHTS, exclude_none=True)
    lm_scales = _lm_scales(request, models, base)
    try:
        return dataclasses.replace(base, **given, lm_scales=lm_scales)
    except InputError as error:
        at = error.pointer
        if at.startswith("/lm_scales"):
            at = "/lm_scale"
        raise type(error)(str(error), pointer=f"/weights{at}") from None


def _base(choice: WeightChoice, first: LoadedModel) -> Weights:
    """The preset's weights or, without one, the first model's defaults."""
    if choice.preset is None:
        numbers = _defaults(first)
        lm_scale = numbers.pop("lm_scale")
        return Weights(lm_scales={first.name: lm_scale}, **numbers)
    try:
        return preset_weights(choice.preset, choice.parameters, lm=first.name)
    except InputError as error:
        at = error.pointer if error.pointer == "/preset" else f"/parameters{error.pointer}"
        raise type(error)(str(error), pointer=f"/weights{at}") from None


def _lm_scales(
    request: LmRequest, models: Sequence[LoadedModel], base: Weights
) -> dict[str, float]:
    # By the model's own name: a request may have named its revision as well.
    own = {
        model.name: lm.lm_scale
        for lm, model in zip(request.lms or [], models, strict=False)
        if lm.lm_scale is not None
    }
    scales = {}
    for model in models:
        fallback = base.lm_scales.get(model.name, _defaults(model)["lm_scale"])
        shared = fallback if request.weights.lm_scale is None else request.weights.lm_scale
        scales[model.name] = own.get(model.name, shared)
    return scales


def _defaults(model: LoadedModel) -> dict[str, Any]:
    return {**DEFAULT_WEIGHTS, **model.manifest.default_weights}
