"""Rescore k2's lattices by a running service, from within a decoder's process.

    symbols = {index: table[index] for index in table.ids}  # of a k2.SymbolTable
    with Client("http://127.0.0.1:8080") as client:
        rescored = rescore_lattice(lattice, client=client, symbols=symbols)
    rescored.hypotheses[0].text, k2.shortest_path(rescored.fsa, use_double_scores=True)

For the Python, torch and numpy that k2 was built for: of this package only what reads lattices is
imported. What is tried again, and how often, is `service.client`'s; without an answer the lattice's
own best path stands.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType
from typing import Any, Literal

from quantized_lm.errors import LatticeError, SecondpassError
from quantized_lm.lattice.formats import LATTICE_FORMATS, ReadOptions
from quantized_lm.lattice.k2_fsa import from_lattice, to_lattice
from quantized_lm.lattice.lattice import Lattice
from service.client import Client, Hypothesis, RefusedRequestError, Reply
from service.client.asks import Missing
from service.client.replies import (
    INVALID,
    InvalidReplyError,
    names,
    number,
    objects,
    problem_of,
)

_LATTICES_PER_REQUEST = 16
_AXES_OF_VECTOR = 3


@dataclass(frozen=True)
class RescoreOptions:
    """What is asked for.

    Attributes:
        model: name of the LM; None where the service has one.
        n_best: hypotheses that come back.
        returns_fsa: whether the scored sequences come back as an Fsa.
        context: what was said before, oldest first; 64 texts at most.
        lm_scores_scale: what the decoder multiplied lm_scores with.
        search: further fields of the request's `options`, such as deadline_ms or order.
        wire: the form in which lattices travel; both keep every bit of a score.
        deadline_ms: for each request of up to 16 lattices; None takes that of the client.
        max_arcs: a lattice with more is not sent.
    """

    model: str | None = None
    n_best: int = 1
    returns_fsa: bool = True
    context: Sequence[str] = ()
    lm_scores_scale: float = 1.0
    search: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    wire: Literal["k2-safetensors", "k2-json"] = "k2-safetensors"
    deadline_ms: float | None = None
    max_arcs: int = 100_000


@dataclass(frozen=True, eq=False)
class RescoredFsa:
    """A lattice after rescoring.

    Attributes:
        hypotheses: best first; without an answer the lattice's own best path alone.
        fsa: k2.Fsa of the sequences that were scored, whose scores sum to those of the hypotheses;
            its attribute `lm` has the LM's own nats. None unless asked for, and without an answer.
        is_exact: whether no other sequence of the lattice can be better.
        degraded: budgets that ended the search, or why there is no answer.
        cuts: choices that ended it.
    """

    hypotheses: tuple[Hypothesis, ...]
    fsa: Any = None
    is_exact: bool = False
    degraded: tuple[str, ...] = ()
    cuts: tuple[str, ...] = ()


_DEFAULT = RescoreOptions()


def rescore_lattice(
    fsa: Any,
    *,
    client: Client,
    symbols: Mapping[int, str],
    weights: Mapping[str, float] | None = None,
    options: RescoreOptions = _DEFAULT,
) -> RescoredFsa:
    """Rescore one lattice.

    Args:
        fsa: k2.Fsa, or an FsaVec of one, in topological order; dead ends are cut off.
        client: of the service.
        symbols: words by the ids that are in aux_labels, or in labels where there are none.
        weights: am_scale, graph_scale, lm_scale, word_bonus, token_bonus; the service's own
            for those that are absent.

    Raises:
        LatticeError: it is no valid lattice, or there are several.
        RefusedRequestError: the service finds it wrong, unless the client's `on_invalid` is
            "first_pass".
    """
    if len(fsa.shape) == _AXES_OF_VECTOR and fsa.shape[0] != 1:
        raise LatticeError(f"the FsaVec has {fsa.shape[0]} lattices; need 1, or rescore_lattices")
    (result,) = rescore_lattices(
        fsa, client=client, symbols=symbols, weights=weights, options=options
    )
    if isinstance(result, SecondpassError):
        raise result
    return result


def rescore_lattices(
    fsa: Any,
    *,
    client: Client,
    symbols: Mapping[int, str],
    weights: Mapping[str, float] | None = None,
    options: RescoreOptions = _DEFAULT,
) -> list[RescoredFsa | SecondpassError]:
    """The same of an FsaVec of any length, in its order.

    A lattice that is refused, here or by the service, has its error in its place and does not keep
    the others from being rescored. Where the client's `on_invalid` is "first_pass" it has, if it is
    the service that refuses it, its own best path there.

    Raises:
        RefusedRequestError: the service finds a request of several wrong as a whole.
    """
    reading = ReadOptions(
        symbols=symbols, max_arcs=options.max_arcs, lm_scores_scale=options.lm_scores_scale
    )
    results: dict[int, RescoredFsa | SecondpassError] = {}
    lattices: dict[int, tuple[Lattice, str]] = {}
    for index, one in enumerate(_connected(fsa)):
        try:
            lattices[index] = to_lattice(one, reading), _best_text(one, symbols)
        except LatticeError as error:
            results[index] = error
    for start in range(0, len(lattices), _LATTICES_PER_REQUEST):
        part = list(lattices)[start : start + _LATTICES_PER_REQUEST]
        body = _request([lattices[index][0] for index in part], dict(weights or {}), options)
        ask = _Lattices(json.dumps(body).encode("ascii"), [lattices[index][1] for index in part])
        results.update(zip(part, _answers(client, ask, options.deadline_ms), strict=True))
    return [results[index] for index in range(len(results))]


@dataclass(frozen=True)
class _Rescored(Reply):
    results: tuple[RescoredFsa | SecondpassError, ...] = ()


@dataclass(frozen=True)
class _Lattices:
    """A request of several lattices, as `service.client.asks.Ask`."""

    body: bytes
    own: Sequence[str]
    path: str = "/v1/rescore/lattice"

    def read(self, body: Mapping[str, Any]) -> _Rescored:
        """The service's answer, a refused lattice as its error."""
        results = objects(body, "results", len(self.own))
        return _Rescored(body=body, results=tuple(map(_rescored, results, self.own)))

    def first_pass(self, why: Missing) -> _Rescored:
        """The reply without the service."""
        results = tuple(_own_path(text, why.reason) for text in self.own)
        return _Rescored(**why.fields(), results=results)


def _answers(
    client: Client, ask: _Lattices, deadline_ms: float | None
) -> tuple[RescoredFsa | SecondpassError, ...]:
    try:
        results = client.ask(ask, deadline_ms=deadline_ms).results
    except RefusedRequestError as error:
        if len(ask.own) > 1:
            raise
        return (error,)
    if client.settings.on_invalid == "raise":
        return results
    return tuple(
        _own_path(own, INVALID) if isinstance(result, SecondpassError) else result
        for result, own in zip(results, ask.own, strict=True)
    )


def _connected(fsa: Any) -> Iterator[Any]:
    """Each Fsa without the dead ends that a pruned search leaves."""
    import k2  # noqa: PLC0415 - only a decoder's process has it

    whole = k2.connect(fsa.to("cpu"))
    if len(whole.shape) == _AXES_OF_VECTOR:
        yield from (whole[index] for index in range(whole.shape[0]))
    else:
        yield whole


def _request(
    lattices: Sequence[Lattice], weights: dict[str, float], options: RescoreOptions
) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "lattices": [
            {**_packed(lattice, options.wire), "context": {"text": list(options.context)}}
            for lattice in lattices
        ],
        "weights": weights,
        "options": {
            "n_best": options.n_best,
            "return_lattice": options.returns_fsa,
            **options.search,
        },
    }
    if options.model is not None:
        asked["model"] = options.model
    return asked


def _packed(lattice: Lattice, wire: str) -> dict[str, Any]:
    content = LATTICE_FORMATS[wire].write([lattice])
    if wire == "k2-json":
        return {"lattice": json.loads(content), "format": wire}
    return {"base64": base64.b64encode(content).decode("ascii"), "format": wire}


def _rescored(result: Mapping[str, Any], own: str) -> RescoredFsa | SecondpassError:
    problem = problem_of(result.get("error"))
    if problem is not None:
        return RefusedRequestError(problem, _Rescored(results=(_own_path(own, INVALID),)))
    hypotheses, packed = result.get("hypotheses"), result.get("lattice")
    if not isinstance(hypotheses, list) or not hypotheses:
        raise InvalidReplyError("hypotheses is no list with entries")
    try:
        fsa = None if packed is None else from_lattice(_unpacked(packed))
    except (LatticeError, KeyError, TypeError, ValueError) as error:
        raise InvalidReplyError(f"the lattice of the reply cannot be read: {error}") from None
    return RescoredFsa(
        tuple(map(_hypothesis, objects(result, "hypotheses", len(hypotheses)))),
        fsa,
        is_exact=result.get("exact") is True,
        degraded=names(result, "degraded"),
        cuts=names(result, "cuts"),
    )


def _hypothesis(one: Mapping[str, Any]) -> Hypothesis:
    text = one.get("text")
    if not isinstance(text, str):
        raise InvalidReplyError("a hypothesis has no text")
    return Hypothesis(text, number(one, "score"), number(one, "posterior"), fields=one)


def _own_path(text: str, reason: str) -> RescoredFsa:
    return RescoredFsa((Hypothesis(text),), degraded=(reason,))


def _best_text(fsa: Any, symbols: Mapping[int, str]) -> str:
    """Words of the lattice's own best path."""
    import k2  # noqa: PLC0415 - only a decoder's process has it

    best = k2.shortest_path(k2.create_fsa_vec([fsa]), use_double_scores=True)
    labels = getattr(best, "aux_labels", best.labels)
    listed = labels.tolist()
    ids = chain.from_iterable(listed) if isinstance(labels, k2.RaggedTensor) else listed
    return " ".join(symbols[one] for one in ids if one > 0)


def _unpacked(packed: Mapping[str, Any]) -> Lattice:
    if "base64" in packed:
        content = base64.b64decode(packed["base64"])
    else:
        content = json.dumps(packed["json"]).encode()
    (lattice,) = LATTICE_FORMATS[packed["format"]].read(content, ReadOptions(max_arcs=2**31))
    return lattice
