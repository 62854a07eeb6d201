"""Scores of one n-best list and their weights to one ranking. Knows nothing of models or HTTP.

    total = am_scale*am + graph_scale*graph + sum_i lm_scale_i*lm_i + sum_j weight_j*extra_j
            + word_bonus*words + token_bonus*tokens + char_bonus*chars + bias

optionally divided by a length. Natural logs, higher is better, float64 throughout. A scale of 0
removes its term, even where the score is missing or -inf. `formula`, `terms` and `combine` are
made from one list of terms, so that what is reported is what was computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from quantized_lm.components import Components, Floats, Ints, escape
from quantized_lm.errors import InputError, MissingScoreError, NonFiniteError, ShapeError

MODES = ("log-linear", "linear")


@dataclass(frozen=True)
class Weights:
    """What each score counts for. Every number is finite; subtraction is a negative number.

    Attributes:
        am_scale: factor of the acoustic (or whole first-pass) score.
        graph_scale: factor of the first pass's LM or graph score; in mode "linear", of the mix.
        lm_scales: LM name -> factor; in mode "linear", its probability share, 0 to 1.
        word_bonus: added per word, nats.
        token_bonus: added per LM token without `</s>`, nats.
        char_bonus: added per character of the text, spaces included, nats (NeMo's beta).
        extra: name of a score sent by the client -> factor.
        bias: added once per hypothesis, nats.
        length_norm: a key of `LENGTH_NORMS`: what the sum is divided by.
        gnmt_alpha: exponent of "gnmt": ((5 + tokens) / 6) ** alpha.
        length_offset: added to the length before dividing (sherpa-onnx counts 2 leading blanks).
        mode: "log-linear", or "linear": graph and LMs become one term,
            graph_scale * log(sum_i share_i * exp(lm_i) + (1 - sum_i share_i) * exp(graph)).

    Raises:
        NonFiniteError: a number is NaN or infinite.
        InputError: unknown `length_norm` or `mode`, or shares that mode "linear" cannot use. The
            pointer is relative to the weights, such as "/lm_scales/en-small".
    """

    am_scale: float = 1.0
    graph_scale: float = 0.0
    lm_scales: Mapping[str, float] = field(default_factory=dict)
    word_bonus: float = 0.0
    token_bonus: float = 0.0
    char_bonus: float = 0.0
    extra: Mapping[str, float] = field(default_factory=dict)
    bias: float = 0.0
    length_norm: str = "none"
    gnmt_alpha: float = 1.0
    length_offset: int = 0
    mode: str = "log-linear"

    def __post_init__(self) -> None:
        for pointer, value in self._numbers():
            if not math.isfinite(value):
                raise NonFiniteError(f"weight is {value}; need a finite number", pointer=pointer)
        _require_choice(self.length_norm, tuple(LENGTH_NORMS), "/length_norm")
        _require_choice(self.mode, MODES, "/mode")
        if self.length_offset < 0:
            raise InputError(
                f"length_offset is {self.length_offset}; need 0 or more", pointer="/length_offset"
            )
        if self.mode == "linear":
            self._require_shares()

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """Every term that counts, in the order they are added."""
        return tuple(source for source in _sources(self) if source.weight != 0.0)

    def _numbers(self) -> list[tuple[str, float]]:
        numbers = []
        for name, value in vars(self).items():
            if isinstance(value, Mapping):
                numbers += [(f"/{name}/{escape(key)}", value[key]) for key in value]
            elif not isinstance(value, str):
                numbers.append((f"/{name}", value))
        return numbers

    def _require_shares(self) -> None:
        for name, share in self.lm_scales.items():
            if not 0.0 <= share <= 1.0:
                raise InputError(
                    f"mode 'linear' got share {share} for LM {name!r}; need 0 to 1",
                    pointer=f"/lm_scales/{escape(name)}",
                )
        if (total := math.fsum(self.lm_scales.values())) > 1.0:
            raise InputError(
                f"mode 'linear' got shares adding up to {total}; need at most 1",
                pointer="/lm_scales",
            )
        if self.graph_scale == 0.0:
            raise InputError(
                "mode 'linear' got graph_scale 0, which removes the mixed LM; need another value",
                pointer="/graph_scale",
            )


@dataclass(frozen=True)
class Ranking:
    """One list in its new order.

    Attributes:
        total: (H,) float64, in the order the hypotheses came.
        order: (H,) int64, indices of the hypotheses, best first.
        posterior: (H,) float64, softmax of posterior_scale * total; in the order they came.
    """

    total: Floats
    order: Ints
    posterior: Floats


@dataclass(frozen=True)
class Term:
    """One summand of one hypothesis: weight * value."""

    name: str
    weight: float
    value: float


def require_scores(components: Components, weights: Weights) -> None:
    """Pass if the scores are there that count; `totals` without the sums, and raises as it does."""
    _columns(components, weights)


def combine(components: Components, weights: Weights, *, posterior_scale: float = 1.0) -> Ranking:
    """Rank one list by total score, best first. Ties keep the decoder's order.

    A score of -inf in a term that counts makes the total -inf; a list of nothing but -inf keeps
    its order, with equal posteriors.

    Raises:
        MissingScoreError: a weight other than 0 needs a score that was not given; the pointer is
            like "/hypotheses/2/am_score".
        NonFiniteError: a score is NaN or +infinity, or `posterior_scale` is not finite or below 0.
        ShapeError: the columns differ in length.
    """
    if not 0.0 <= posterior_scale < math.inf:
        raise NonFiniteError(
            f"posterior_scale is {posterior_scale}; need a finite number of 0 or more",
            pointer="/posterior_scale",
        )
    total = totals(components, weights)
    if not (total < np.inf).all():
        position = int(np.argmin(total < np.inf))
        raise NonFiniteError(
            f"total of hypothesis {position} is {total[position]}; "
            "need scores and scales whose sum is a number",
            pointer=f"/hypotheses/{position}",
        )
    order = np.argsort(-total, kind="stable").astype(np.int64, copy=False)
    return Ranking(total, order, _softmax(total, posterior_scale))


def totals(components: Components, weights: Weights) -> Floats:
    """(H,) float64, what `combine` ranks by. Raises MissingScoreError and ShapeError as it does."""
    total = np.zeros(components.words.shape, np.float64)
    for source, values in _columns(components, weights):
        total += source.weight * values
    if LENGTH_NORMS[weights.length_norm].divide is not None:
        total /= divisor(components, weights)
    return total


def terms(components: Components, weights: Weights, position: int) -> tuple[Term, ...]:
    """The summands of one hypothesis in the order they are added.

    Adding weight * value from left to right, starting at 0.0, and dividing by `divisor` gives the
    very float64 that `combine` returns.

    Raises:
        MissingScoreError, NonFiniteError, ShapeError: as `combine`.
    """
    return tuple(
        Term(source.name, source.weight, float(values[position]))
        for source, values in _columns(components, weights)
    )


def divisor(components: Components, weights: Weights) -> Floats:
    """(H,) float64, what each sum is divided by; a length below 1 counts as 1."""
    divide = LENGTH_NORMS[weights.length_norm].divide
    return np.ones(components.words.shape) if divide is None else divide(components, weights)


def formula(weights: Weights) -> str:
    """The sum as text, such as "1*am + 0.5*lm[en-small] + 0.2*words"; numbers read back exactly."""
    text = ""
    for source in weights.sources:
        sign = "-" if source.weight < 0.0 else "+"
        text += f" {sign} " if text else sign.removeprefix("+")
        text += _number(abs(source.weight)) + (f"*{source.name}" if source.name else "")
    text = text or "0"
    divided_by = LENGTH_NORMS[weights.length_norm].text(weights)
    return f"({text}) / {divided_by}" if divided_by else text


@dataclass(frozen=True)
class LengthNorm:
    """One way to divide by length: the (H,) divisor, None for 1, and its text in the formula."""

    divide: Callable[[Components, Weights], Floats] | None
    text: Callable[[Weights], str]


def _lengths(counts: Ints, weights: Weights) -> Floats:
    return np.maximum(counts.astype(np.float64) + weights.length_offset, 1.0)


def _length_text(noun: str, weights: Weights) -> str:
    offset = weights.length_offset
    return f"({noun} + {offset})" if offset else noun


LENGTH_NORMS: Mapping[str, LengthNorm] = {
    "none": LengthNorm(None, lambda _: ""),
    "tokens": LengthNorm(lambda c, w: _lengths(c.tokens, w), lambda w: _length_text("tokens", w)),
    "words": LengthNorm(lambda c, w: _lengths(c.words, w), lambda w: _length_text("words", w)),
    "gnmt": LengthNorm(
        lambda c, w: np.power((5.0 + c.tokens + w.length_offset) / 6.0, w.gnmt_alpha, dtype=float),
        lambda w: f"((5 + {_length_text('tokens', w)})/6)^{_number(w.gnmt_alpha)}",
    ),
}


@dataclass(frozen=True)
class Source:
    """One term: its name in the formula, its weight, and how its values are read."""

    name: str
    weight: float
    read: Callable[[Components], Floats]


def _sources(weights: Weights) -> list[Source]:
    """Every term, in the order they are added; bias has no name."""
    sources = [Source("am", weights.am_scale, _am)]
    if weights.mode == "linear":
        sources.append(Source(_mix_name(weights), weights.graph_scale, partial(_mix, weights)))
    else:
        sources.append(Source("graph", weights.graph_scale, _graph))
        sources += [
            Source(f"lm[{name}]", scale, partial(_lm, name))
            for name, scale in weights.lm_scales.items()
        ]
    sources += [
        Source(f"extra[{name}]", scale, partial(_extra, name))
        for name, scale in weights.extra.items()
    ]
    return [
        *sources,
        Source("words", weights.word_bonus, partial(_lengths_of, "words")),
        Source("tokens", weights.token_bonus, partial(_lengths_of, "tokens")),
        Source("chars", weights.char_bonus, partial(_lengths_of, "chars")),
        Source("", weights.bias, _ones),
    ]


def _columns(components: Components, weights: Weights) -> list[tuple[Source, Floats]]:
    columns = []
    for source in weights.sources:
        values = source.read(components)
        if values.shape != components.words.shape:
            raise ShapeError(
                f"{source.name} is {values.shape}, words is {components.words.shape}; "
                "need one shape"
            )
        columns.append((source, values))
    return columns


def _mix_name(weights: Weights) -> str:
    shares = [(f"lm[{name}]", share) for name, share in weights.lm_scales.items()]
    shares.append(("graph", 1.0 - math.fsum(weights.lm_scales.values())))
    inside = " + ".join(f"{_number(share)}*exp({name})" for name, share in shares if share != 0.0)
    return f"log({inside})"


def _given(values: Floats | None, components: Components, field_name: str) -> Floats:
    if values is None:
        values = np.full(components.words.shape, np.nan)
    missing = np.isnan(values)
    if missing.any():
        position = int(np.argmax(missing))
        raise MissingScoreError(
            f"hypothesis {position} has no {field_name}, which a weight other than 0 needs; "
            "send the score or set the weight to 0",
            pointer=f"/hypotheses/{position}/{field_name}",
        )
    return values


def _am(components: Components) -> Floats:
    return _given(components.am, components, "am_score")


def _lengths_of(noun: str, components: Components) -> Floats:
    lengths: Ints = getattr(components, noun)
    return lengths.astype(np.float64)


def _ones(components: Components) -> Floats:
    return np.ones(components.words.shape)


def _graph(components: Components) -> Floats:
    return _given(components.graph, components, "graph_score")


def _extra(name: str, components: Components) -> Floats:
    return _given(components.extra.get(name), components, f"extra/{escape(name)}")


def _lm(name: str, components: Components) -> Floats:
    if name not in components.lm:
        known = ", ".join(sorted(components.lm)) or "none"
        raise MissingScoreError(
            f"no scores of LM {name!r}, which a scale other than 0 needs; have {known}",
            pointer=f"/hypotheses/0/components/lm/{escape(name)}",
        )
    values = components.lm[name]
    if np.isnan(values).any():
        position = int(np.argmax(np.isnan(values)))
        raise NonFiniteError(
            f"score of LM {name!r} is NaN for hypothesis {position}; need a number",
            pointer=f"/hypotheses/{position}/components/lm/{escape(name)}",
        )
    return values


def _mix(weights: Weights, components: Components) -> Floats:
    mixed = np.full(components.words.shape, -np.inf)
    share_of_graph = 1.0 - math.fsum(weights.lm_scales.values())
    if share_of_graph != 0.0:
        mixed = math.log(share_of_graph) + _graph(components)
    for name, share in weights.lm_scales.items():
        if share != 0.0:
            mixed = np.logaddexp(mixed, math.log(share) + _lm(name, components))
    return mixed


def _softmax(total: Floats, scale: float) -> Floats:
    if total.size == 0:
        return total
    best = total.max()
    if scale == 0.0 or best == -np.inf:
        return np.full(total.shape, 1.0 / total.size)
    powers = np.exp(scale * total - scale * best)
    return np.asarray(powers / powers.sum(), np.float64)


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _require_choice(value: str, choices: Sequence[str], pointer: str) -> None:
    if value not in choices:
        message = f"{pointer[1:]} is {value!r}; need one of {', '.join(choices)}"
        raise InputError(message, pointer=pointer)
