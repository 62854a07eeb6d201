"""Rescore k2's lattices by a running service, from within a decoder's process.

    symbols = {index: table[index] for index in table.ids}  # of a k2.SymbolTable
    rescored = rescore_lattice(lattice, url="http://127.0.0.1:8080", symbols=symbols)
    rescored.hypotheses[0].text, k2.shortest_path(rescored.fsa, use_double_scores=True)

For the Python, torch and numpy that k2 was built for: of this package only what reads lattices is
imported. Knows the wire contract, not how the service keeps it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import httpx

from quantized_lm.errors import LatticeError, SecondpassError
from quantized_lm.lattice.formats import LATTICE_FORMATS, ReadOptions
from quantized_lm.lattice.k2_fsa import from_lattice, to_lattice
from quantized_lm.lattice.lattice import Lattice

_PATH = "/v1/rescore/lattice"
_LATTICES_PER_REQUEST = 16
_AXES_OF_VECTOR = 3
_OF_ONE_LATTICE = (413, 422)  # statuses that say what is wrong with a lattice that came alone


class ServiceError(SecondpassError):
    """The service did not answer, or refused the request or one lattice of it.

    Attributes:
        status: of HTTP; None where there was no answer.
        code: of the problem, as in the README; "" where there is none.
    """

    def __init__(self, message: str, *, status: int | None = None, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class RescoreOptions:
    """What is asked for.

    Attributes:
        model: name of the LM; None where the service has one.
        n_best: hypotheses that come back.
        returns_fsa: whether the scored sequences come back as an Fsa.
        context: what was said before, oldest first.
        lm_scores_scale: what the decoder multiplied lm_scores with.
        search: further fields of the request's `options`, such as deadline_ms or order.
        wire: the form in which lattices travel; both keep every bit of a score.
        timeout_s: for which an answer is waited for.
        max_arcs: a lattice with more is not sent.
    """

    model: str | None = None
    n_best: int = 1
    returns_fsa: bool = True
    context: Sequence[str] = ()
    lm_scores_scale: float = 1.0
    search: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    wire: Literal["k2-safetensors", "k2-json"] = "k2-safetensors"
    timeout_s: float = 60.0
    max_arcs: int = 100_000


@dataclass(frozen=True)
class RescoredHypothesis:
    """One word sequence.

    Attributes:
        text: words with spaces between.
        score: nats, what the sequences are ranked by.
        posterior: among the sequences that were scored.
        reply: all that the service says of it.
    """

    text: str
    score: float
    posterior: float
    reply: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class RescoredFsa:
    """A lattice after rescoring.

    Attributes:
        hypotheses: best first.
        fsa: k2.Fsa of the sequences that were scored, whose scores sum to those of the hypotheses;
            its attribute `lm` has the LM's own nats. None unless asked for.
        is_exact: whether no other sequence of the lattice can be better.
        degraded: budgets that ended the search. cuts: choices that did.
    """

    hypotheses: tuple[RescoredHypothesis, ...]
    fsa: Any
    is_exact: bool
    degraded: tuple[str, ...]
    cuts: tuple[str, ...]


_DEFAULT = RescoreOptions()


def rescore_lattice(
    fsa: Any,
    *,
    url: str,
    symbols: Mapping[int, str],
    weights: Mapping[str, float] | None = None,
    options: RescoreOptions = _DEFAULT,
    client: httpx.Client | None = None,
) -> RescoredFsa:
    """Rescore one lattice.

    Args:
        fsa: k2.Fsa, or an FsaVec of one, in topological order; dead ends are cut off.
        url: of the service, such as "http://127.0.0.1:8080".
        symbols: words by the ids that are in aux_labels, or in labels where there are none.
        weights: am_scale, graph_scale, lm_scale, word_bonus, token_bonus; the service's own
            for those that are absent.
        client: to send with, for connections that stay open; its timeout holds.

    Raises:
        LatticeError: it is no valid lattice, or there are several.
        ServiceError: the service did not answer, or refused it.
    """
    if len(fsa.shape) == _AXES_OF_VECTOR and fsa.shape[0] != 1:
        raise LatticeError(f"the FsaVec has {fsa.shape[0]} lattices; need 1, or rescore_lattices")
    (result,) = rescore_lattices(
        fsa, url=url, symbols=symbols, weights=weights, options=options, client=client
    )
    if isinstance(result, SecondpassError):
        raise result
    return result


def rescore_lattices(
    fsa: Any,
    *,
    url: str,
    symbols: Mapping[int, str],
    weights: Mapping[str, float] | None = None,
    options: RescoreOptions = _DEFAULT,
    client: httpx.Client | None = None,
) -> list[RescoredFsa | SecondpassError]:
    """The same of an FsaVec of any length, in its order.

    A lattice that is refused, here or by the service, has its error in its place and does not keep
    the others from being rescored.

    Raises:
        ServiceError: the service did not answer, or refused a request as a whole.
    """
    reading = ReadOptions(
        symbols=symbols, max_arcs=options.max_arcs, lm_scores_scale=options.lm_scores_scale
    )
    results: dict[int, RescoredFsa | SecondpassError] = {}
    lattices: dict[int, Lattice] = {}
    for index, one in enumerate(_connected(fsa)):
        try:
            lattices[index] = to_lattice(one, reading)
        except LatticeError as error:
            results[index] = error
    sender = client or httpx.Client(timeout=options.timeout_s)
    try:
        for start in range(0, len(lattices), _LATTICES_PER_REQUEST):
            part = list(lattices)[start : start + _LATTICES_PER_REQUEST]
            body = _request([lattices[index] for index in part], dict(weights or {}), options)
            results.update(zip(part, _ask(sender, url, body), strict=True))
    finally:
        if client is None:
            sender.close()
    return [results[index] for index in range(len(results))]


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


def _ask(
    client: httpx.Client, url: str, body: dict[str, Any]
) -> list[RescoredFsa | SecondpassError]:
    try:
        response = client.post(url.rstrip("/") + _PATH, json=body)
        reply = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise ServiceError(f"{url}: no answer that can be read ({error!r})") from None
    if response.status_code != 200:
        problem = _problem(reply, response.status_code)
        if len(body["lattices"]) == 1 and response.status_code in _OF_ONE_LATTICE:
            return [problem]
        raise problem
    return [
        _problem(result["error"], 200) if "error" in result else _rescored(result)
        for result in reply["results"]
    ]


def _problem(reply: Mapping[str, Any], status: int) -> ServiceError:
    detail = str(reply.get("detail", "refused"))
    faults = [f"{fault['pointer']}: {fault['message']}" for fault in reply.get("errors", [])]
    message = "; ".join([detail, *(fault for fault in faults if fault != detail)])
    return ServiceError(
        message, status=int(reply.get("status", status)), code=str(reply.get("code", ""))
    )


def _rescored(result: Mapping[str, Any]) -> RescoredFsa:
    packed = result.get("lattice")
    return RescoredFsa(
        hypotheses=tuple(
            RescoredHypothesis(one["text"], one["score"], one["posterior"], one)
            for one in result["hypotheses"]
        ),
        fsa=None if packed is None else from_lattice(_unpacked(packed)),
        is_exact=result["exact"],
        degraded=tuple(result["degraded"]),
        cuts=tuple(result["cuts"]),
    )


def _unpacked(packed: Mapping[str, Any]) -> Lattice:
    if "base64" in packed:
        content = base64.b64decode(packed["base64"])
    else:
        content = json.dumps(packed["json"]).encode()
    (lattice,) = LATTICE_FORMATS[packed["format"]].read(content, ReadOptions(max_arcs=2**31))
    return lattice
