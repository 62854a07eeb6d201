"""Rescored lists with every score stored: what `rescore` writes and `tune` and `evaluate` read.

One JSON object a line, an entry of the service's `results` plus `ref`. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantized_lm.combine import Ranking
from quantized_lm.components import Components, score_column
from quantized_lm.nbest import (
    Json,
    Utterance,
    list_field,
    number_field,
    numbers_field,
    read_records,
    reference_field,
    refuse,
    text_field,
)

FAILED = "failed"  # why a list kept the decoder's order: it could not be ranked at all


@dataclass(frozen=True)
class LmColumn:
    """What LMs say of one list: the input of a result beside the decoder's own scores.

    Attributes:
        scores: LM name -> log probability of each hypothesis, nats.
        num_words: words of each hypothesis, as the first LM reads them.
        num_tokens: tokens of each hypothesis under the first LM, without `</s>`.
        oov: words of each hypothesis outside the first LM's vocabulary.
    """

    scores: Mapping[str, Sequence[float]]
    num_words: Sequence[int]
    num_tokens: Sequence[int]
    oov: Sequence[Sequence[str]]


@dataclass(frozen=True)
class ScoredHypothesis:
    """One hypothesis with its stored scores, nats, higher is better; None where not given."""

    text: str
    am: float | None
    graph: float | None
    lm: Mapping[str, float]
    extra: Mapping[str, float]
    num_words: int
    num_tokens: int
    num_chars: int


@dataclass(frozen=True)
class ScoredUtterance:
    """One list in the decoder's order, with the ranks it was written with.

    Attributes:
        id: name of the utterance.
        hypotheses: in the decoder's order.
        order: indices of the hypotheses, best first, as rescored.
        ref: what was said; None where not known.
        is_ranked: False where the list could not be, and has no scores of an LM.
    """

    id: str
    hypotheses: tuple[ScoredHypothesis, ...]
    order: tuple[int, ...]
    ref: str | None
    is_ranked: bool = True


def components_of(hypotheses: Sequence[ScoredHypothesis]) -> Components:
    """Columns of H stored hypotheses; an LM that scored only some of them has NaN elsewhere."""
    lm_names = dict.fromkeys(name for hypothesis in hypotheses for name in hypothesis.lm)
    extra_names = dict.fromkeys(name for hypothesis in hypotheses for name in hypothesis.extra)
    return Components(
        am=score_column([hypothesis.am for hypothesis in hypotheses], "am_score"),
        graph=score_column([hypothesis.graph for hypothesis in hypotheses], "graph_score"),
        lm={
            name: np.array([hypothesis.lm.get(name, np.nan) for hypothesis in hypotheses])
            for name in lm_names
        },
        extra={
            name: score_column([hypothesis.extra.get(name) for hypothesis in hypotheses], name)
            for name in extra_names
        },
        words=np.array([hypothesis.num_words for hypothesis in hypotheses], np.int64),
        tokens=np.array([hypothesis.num_tokens for hypothesis in hypotheses], np.int64),
        chars=np.array([hypothesis.num_chars for hypothesis in hypotheses], np.int64),
    )


def join(utterance: Utterance, lms: LmColumn) -> tuple[ScoredHypothesis, ...]:
    """The decoder's scores and the LMs' of one list, in the decoder's order."""
    return tuple(
        ScoredHypothesis(
            text=hypothesis.text,
            am=hypothesis.am_score,
            graph=hypothesis.graph_score,
            lm={name: float(scores[position]) for name, scores in lms.scores.items()},
            extra=hypothesis.extra,
            num_words=int(lms.num_words[position]),
            num_tokens=int(lms.num_tokens[position]),
            num_chars=len(hypothesis.text),
        )
        for position, hypothesis in enumerate(utterance.hypotheses)
    )


def result_record(utterance: Utterance, lms: LmColumn, ranking: Ranking) -> dict[str, object]:
    """One line of a rescored file: an entry of the service's `results`, and `ref` if there is one.

    A total or posterior that JSON has no number for (-inf) becomes null.
    """
    scored = join(utterance, lms)
    entries = [
        _entry(rank, position, scored[position], lms.oov[position])
        | {
            "score": finite(ranking.total[position]),
            "posterior": float(ranking.posterior[position]),
        }
        for rank, position in enumerate(ranking.order.tolist(), start=1)
    ]
    return _record(utterance, entries, changed=bool(ranking.order[0] != 0), degraded=[])


def unranked_record(utterance: Utterance, detail: str) -> dict[str, object]:
    """The line of a list that could not be ranked: the decoder's order, without scores of ours.

    Args:
        detail: why.
    """
    unknown = [0] * len(utterance.hypotheses)
    scored = join(utterance, LmColumn({}, unknown, unknown, ()))
    entries = [_entry(place + 1, place, one, ()) for place, one in enumerate(scored)]
    return _record(utterance, entries, changed=False, degraded=[FAILED]) | {"detail": detail}


def _entry(
    rank: int, position: int, hypothesis: ScoredHypothesis, oov: Sequence[str]
) -> dict[str, object]:
    """One hypothesis of a line, not ranked yet."""
    return {
        "rank": rank,
        "input_rank": position + 1,
        "text": hypothesis.text,
        "score": None,
        "posterior": None,
        "components": {
            "am": hypothesis.am,
            "graph": hypothesis.graph,
            "lm": dict(hypothesis.lm),
            "extra": dict(hypothesis.extra),
        },
        "num_words": hypothesis.num_words,
        "num_tokens": hypothesis.num_tokens,
        "num_chars": hypothesis.num_chars,
        "oov": list(oov),
    }


def _record(
    utterance: Utterance,
    entries: list[dict[str, object]],
    *,
    changed: bool,
    degraded: list[str],
) -> dict[str, object]:
    record: dict[str, object] = {
        "id": utterance.id,
        "changed": changed,
        "degraded": degraded,
        "hypotheses": entries,
    }
    if utterance.ref is not None:
        record["ref"] = utterance.ref
    return record


def read_scored(path: Path) -> Iterator[ScoredUtterance]:
    """Utterances of a rescored file, one line at a time, each back in the decoder's order.

    Raises:
        DataError: a line is not what `rescore` writes; the message names file, line and field.
    """
    for where, record in read_records(path):
        yield _utterance(record, where)


def _utterance(record: Json, where: str) -> ScoredUtterance:
    if "hyps" in record:
        refuse(where, "/hyps", "is an n-best list without LM scores; run `rescore` on it first")
    entries = list_field(record, "hypotheses", where)
    ranks = [
        _count(entry, "input_rank", where, f"/hypotheses/{position}")
        for position, entry in enumerate(entries)
    ]
    if sorted(ranks) != list(range(1, len(ranks) + 1)):
        refuse(
            where,
            "/hypotheses",
            f"input ranks are {sorted(ranks)}; need 1 to {len(ranks)} (rescore without n_best)",
        )
    hypotheses = [_hypothesis(entry, where, position) for position, entry in enumerate(entries)]
    by_rank = dict(zip(ranks, hypotheses, strict=True))
    degraded = record.get("degraded")
    return ScoredUtterance(
        id=text_field(record, "id", where),
        hypotheses=tuple(by_rank[rank] for rank in sorted(by_rank)),
        order=tuple(rank - 1 for rank in ranks),
        ref=reference_field(record, where),
        is_ranked=not (isinstance(degraded, list) and FAILED in degraded),
    )


def _hypothesis(entry: Json, where: str, position: int) -> ScoredHypothesis:
    pointer = f"/hypotheses/{position}"
    components = entry.get("components")
    if not isinstance(components, dict):
        refuse(where, f"{pointer}/components", f"is {components!r}; need an object of scores")
    inside = f"{pointer}/components"
    return ScoredHypothesis(
        text=text_field(entry, "text", where, pointer=pointer),
        am=_score(components, "am", where, inside),
        graph=_score(components, "graph", where, inside),
        lm=numbers_field(components, "lm", where, inside),
        extra=numbers_field(components, "extra", where, inside),
        num_words=_count(entry, "num_words", where, pointer),
        num_tokens=_count(entry, "num_tokens", where, pointer),
        num_chars=_count(entry, "num_chars", where, pointer),
    )


def _score(components: Json, key: str, where: str, pointer: str) -> float | None:
    value = components.get(key)
    return None if value is None else number_field(value, where, f"{pointer}/{key}")


def _count(entry: Json, key: str, where: str, pointer: str) -> int:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        refuse(where, f"{pointer}/{key}", f"is {value!r}; need a whole number")
    return value


def finite(value: float) -> float | None:
    """A number as JSON has it: null for infinity and NaN."""
    return float(value) if np.isfinite(value) else None
