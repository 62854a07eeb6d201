"""The weight options of a command: a file, a preset or single numbers, over a model's defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantized_lm.combine import Weights
from quantized_lm.errors import DataError, PresetError
from quantized_lm.presets import preset_weights
from quantized_lm.weights_file import read_weights


@dataclass(frozen=True)
class WeightOptions:
    """What was given on the command line; None where an option was left out.

    Attributes:
        file: a weights file, all of whose values count.
        preset: "NAME" or "NAME:PARAMETER=NUMBER,...".
        lm_scale: for every LM.
        numbers: field of `Weights` -> value, such as "am_scale".
    """

    file: Path | None = None
    preset: str | None = None
    lm_scale: float | None = None
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)


def resolve(options: WeightOptions, lm: str, defaults: Mapping[str, float]) -> Weights:
    """Weights for one LM: single numbers over the file or preset, or over the model's defaults.

    Raises:
        DataError: a file and a preset were given.
        InputError: the preset or a value is unusable.
    """
    base = _base(options, lm, defaults)
    scales = base.lm_scales if options.lm_scale is None else {lm: options.lm_scale}
    numbers: dict[str, Any] = dict(options.numbers)
    return dataclasses.replace(base, lm_scales=scales, **numbers)


def parse_preset(text: str) -> tuple[str, dict[str, float]]:
    """Name and parameters of "NAME:PARAMETER=NUMBER,...".

    Raises:
        PresetError: a parameter has no number.
    """
    name, _, listed = text.partition(":")
    parameters = {}
    for item in filter(None, listed.split(",")):
        parameter, _, value = item.partition("=")
        try:
            parameters[parameter.strip()] = float(value)
        except ValueError:
            raise PresetError(
                f"preset parameter is {item!r}; need PARAMETER=NUMBER, as in kaldi:weight=0.8"
            ) from None
    return name, parameters


def _base(options: WeightOptions, lm: str, defaults: Mapping[str, float]) -> Weights:
    if options.file is not None and options.preset is not None:
        raise DataError("got --weights and --preset; give one of them")
    if options.file is not None:
        return read_weights(options.file)
    if options.preset is not None:
        name, parameters = parse_preset(options.preset)
        return preset_weights(name, parameters, lm=lm)
    numbers: dict[str, Any] = {"am_scale": 1.0, "lm_scale": 0.5, **defaults}
    lm_scale = numbers.pop("lm_scale")
    return dataclasses.replace(Weights(lm_scales={lm: lm_scale}), **numbers)
