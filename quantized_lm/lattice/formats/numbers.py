"""Numbers as text: as short as loses nothing, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats.base import Places

_SHORT = ".9g"  # enough digits to tell any two float32 apart


def texts_of(values: NDArray[np.floating], infinity: str = "inf") -> list[str]:
    """Shortest text of each number that `parse_floats` reads back bit for bit.

    A float32 value has at most 9 digits, so that a reader of float32 gets the same bits.
    """
    wide = values.astype(np.float64)
    single = single_of(wide).astype(np.float64) == wide
    texts = [
        format(value, _SHORT) if short else _long(value)
        for value, short in zip(wide.tolist(), single.tolist(), strict=True)
    ]
    unusual = np.flatnonzero(np.isinf(wide) | (wide == 0))
    for at in unusual.tolist():
        texts[at] = texts[at].replace("inf", infinity).replace("-0", "-0.0")
    return texts


def single_of(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """The nearest float32; what is too large becomes infinite, without a warning."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def require_single(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """The nearest float32; only what was infinite is.

    Raises:
        LatticeError: one is too large.
    """
    single = single_of(values)
    bad = np.isinf(single) & ~np.isinf(values)
    if bad.any():
        arc = int(np.argmax(bad))
        raise LatticeError(
            f"arc {arc} has score {values[arc]}, which is too large for float32",
            pointer=f"/arcs/{arc}",
        )
    return single


def parse_floats(texts: Sequence[str], places: Places, what: str) -> NDArray[np.float64]:
    """(E,) numbers; a text that is the short one of a float32 is that float32.

    Raises:
        LatticeError: one is no number.
    """
    values = _convert(texts, float)
    if values is None:
        at = next(at for at, text in enumerate(texts) if _convert([text], float) is None)
        raise places.error(at, f"has {what} {texts[at][:40]!r}; need a number")
    single = single_of(values).astype(np.float64)
    for at in np.flatnonzero((single != values) & np.isfinite(single)).tolist():
        if format(single[at], _SHORT) == texts[at]:
            values[at] = single[at]
    return values


def parse_ints(
    texts: Sequence[str], places: Places, what: str, *, least: int = 0, most: int = 2**31 - 1
) -> NDArray[np.int64]:
    """(E,) whole numbers, `least` to `most`.

    Raises:
        LatticeError: one is not.
    """
    values = _convert(texts, int)
    if values is not None and ((values >= least) & (values <= most)).all():
        return values
    for at, text in enumerate(texts):
        value = _convert([text], int)
        if value is None or not least <= value[0] <= most:
            need = f"need a whole number from {least} to {most}"
            raise places.error(at, f"has {what} {text[:40]!r}; {need}")
    raise AssertionError(texts)


def _convert(texts: Sequence[str], kind: type[int] | type[float]) -> NDArray[Any] | None:
    """(E,) int64 or float64; None where a text is no such number."""
    if "_" in "".join(texts):  # Python's own spelling of thousands
        return None
    try:
        return np.array(list(map(kind, texts)), np.int64 if kind is int else np.float64)
    except (ValueError, OverflowError):
        return None


def _long(value: float) -> str:
    text = repr(value)
    with np.errstate(over="ignore"):
        short = format(float(np.float32(value)), _SHORT)
    if text != short:
        return text
    mantissa, sign, exponent = text.partition("e")  # a zero behind, so that it is no float32's text
    return f"{mantissa}{'0' if '.' in mantissa else '.0'}{sign}{exponent}"
