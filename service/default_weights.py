"""Tuned weights that a server counts with where requests name none, in place of a model's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from quantized_lm.artifact import LoadedModel
from quantized_lm.combine import Weights
from quantized_lm.errors import ArtifactError, DataError, InputError, explain
from quantized_lm.records import without_defaults
from quantized_lm.weights_file import read_weights

_REMEDY = "tune on lists that one model has rescored, and only its scale and numbers"


class WeightsFileError(ArtifactError):
    """A file of weights for a model is refused."""


def read_default_weights(paths: Iterable[Path]) -> dict[str, dict[str, float]]:
    """By model name, as a manifest has them, of files that `secondpass tune` wrote.

    Raises:
        WeightsFileError: a file cannot be read, has an unusable value, weighs what a model's
            defaults cannot, or two are of one model.
    """
    found: dict[str, dict[str, float]] = {}
    for path in paths:
        weights = _weights_of(path)
        if len(weights.lm_scales) != 1:
            names = ", ".join(weights.lm_scales) or "none"
            raise WeightsFileError(f"{path}: lm_scales names {names}; need one model; {_REMEDY}")
        ((name, lm_scale),) = weights.lm_scales.items()
        if name in found:
            raise WeightsFileError(
                f"{path}: there are weights of {name} already; need one file of it"
            )
        numbers = {**without_defaults(weights), "am_scale": weights.am_scale}
        del numbers["lm_scales"]
        for field, value in numbers.items():
            if not isinstance(value, float):
                raise WeightsFileError(
                    f"{path}: {field} is no part of a model's defaults; {_REMEDY}"
                )
        found[name] = {"lm_scale": lm_scale, **numbers}
    return found


def require_served(tuned: Iterable[str], served: Iterable[str]) -> None:
    """Refuse weights that would never count: a misspelled name would cost words in silence.

    Raises:
        WeightsFileError: they are of a model that is not served.
    """
    unknown = sorted(set(tuned) - set(served))
    if unknown:
        raise WeightsFileError(
            f"weights_files: there are weights of {unknown[0]!r}, which is not served; need one of "
            f"{', '.join(sorted(served))}"
        )


def with_weights(model: LoadedModel, tuned: Mapping[str, Mapping[str, float]]) -> LoadedModel:
    """The model with its defaults replaced, if there are some for it."""
    if model.name not in tuned:
        return model
    manifest = dataclasses.replace(model.manifest, default_weights=dict(tuned[model.name]))
    return dataclasses.replace(model, manifest=manifest)


def _weights_of(path: Path) -> Weights:
    try:
        return read_weights(path)
    except (DataError, InputError) as error:
        raise WeightsFileError(explain(error)) from None
