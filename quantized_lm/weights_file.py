"""Weights as a JSON file: what `tune` writes, `rescore` and `evaluate` read, and a person can edit.

    {"weights": {"am_scale": 1.0, "lm_scales": {"en-small": 0.4}, "word_bonus": 0.2, ...},
     "formula": "1*am + 0.4*lm[en-small] + 0.2*words",
     "request": {"weights": {...}, "lms": [...]}, "report": {...}}

Only `weights` is read; `request` is for those who send them to a server. Fields that are left out
have the defaults of `Weights`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantized_lm.combine import Weights, formula
from quantized_lm.errors import DataError, InputError
from quantized_lm.files import reason, write_named
from quantized_lm.nbest import Json, number_field, numbers_field, refuse, text_field

_MAPPINGS = ("lm_scales", "extra")
_TEXTS = ("length_norm", "mode")


def write_weights(path: Path, weights: Weights, report: Mapping[str, object]) -> None:
    """Write the weights, their formula and what is known of them.

    Raises:
        DataError: the folder is not there or may not be written.
    """
    content = {
        "weights": dataclasses.asdict(weights),
        "formula": formula(weights),
        "request": request_fields(weights),
        "report": dict(report),
    }
    write_named(path, (json.dumps(content, indent=2) + "\n").encode())


def request_fields(weights: Weights) -> dict[str, Any]:
    """The same as fields of a request to the service, beside its `utterances`."""
    fields = dataclasses.asdict(weights)
    scales = fields.pop("lm_scales")
    if not scales:  # the server's own would count
        return {"weights": {**fields, "lm_scale": 0.0}}
    lms = [{"model": name, "lm_scale": scale} for name, scale in scales.items()]
    return {"weights": fields, "lms": lms}


def read_weights(path: Path) -> Weights:
    """Weights of a file that `write_weights` made or a person wrote.

    Raises:
        DataError: no such file, no JSON, or a field that is unknown or of the wrong type.
        InputError: a value is unusable.
    """
    where = str(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: no weights can be read ({reason(error)})") from None
    weights = content.get("weights") if isinstance(content, dict) else None
    if not isinstance(weights, dict):
        refuse(where, "/weights", "is no object; need a file that `secondpass tune` wrote")
    try:
        return Weights(**_fields(weights, where))
    except InputError as error:
        pointer = f"/weights{error.pointer}"
        raise type(error)(f"{where}: {pointer}: {error}", pointer=pointer) from None


def _fields(weights: Json, where: str) -> dict[str, Any]:
    known = {spec.name for spec in dataclasses.fields(Weights)}
    fields: dict[str, Any] = {}
    for key, value in weights.items():
        pointer = f"/weights/{key}"
        if key not in known:
            refuse(where, pointer, f"is not known; need one of {', '.join(sorted(known))}")
        if key in _MAPPINGS:
            fields[key] = numbers_field(weights, key, where, "/weights")
        elif key in _TEXTS:
            fields[key] = text_field(weights, key, where, pointer="/weights")
        elif key == "length_offset":
            number = number_field(value, where, pointer)
            if not number.is_integer():
                refuse(where, pointer, f"is {number}; need a whole number")
            fields[key] = int(number)
        else:
            fields[key] = number_field(value, where, pointer)
    return fields
