"""`secondpass evaluate`: what rescoring did to the word error rate, and whether that is chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from quantized_lm.cli.console import command, out, print_json
from quantized_lm.cli.doubts import note_doubts, note_shared
from quantized_lm.cli.tune import SpeakerOfOption, SpeakersOption
from quantized_lm.combine import Weights
from quantized_lm.dev_set import (
    SPEAKER_PATTERN,
    best_hypothesis,
    reference,
    select_speakers,
)
from quantized_lm.errors import DataError
from quantized_lm.scored import ScoredUtterance, read_scored
from quantized_lm.significance import BootstrapInterval, Mapsswe, bootstrap_interval, mapsswe
from quantized_lm.weights_file import read_weights
from quantized_lm.wer import WordErrors, error_counts, oracle, pooled

BASELINES = {"order": "the decoder's order", "am": "the best am_score"}
_REPLICATIONS = 10_000


@dataclass(frozen=True)
class Answers:
    """One set: the reference and each system's answer, per utterance.

    Attributes:
        am: empty if it is not known. other: what is compared with; empty if it is one of these.
    """

    references: list[str]
    first_pass: list[str]
    am: list[str]
    rescored: list[str]
    oracle: list[str]
    other: list[str]


@dataclass(frozen=True)
class SetReport:
    """What is known of one set: system name -> errors, and the rescored answers' tests."""

    systems: Mapping[str, WordErrors]
    mapsswe: Mapsswe
    bootstrap: BootstrapInterval

    def to_record(self) -> dict[str, object]:
        """For the last line of output."""
        return {
            "systems": {
                name: {"wer": counts.rate, "errors": counts.errors, **asdict(counts)}
                for name, counts in self.systems.items()
            },
            "mapsswe": asdict(self.mapsswe),
            "bootstrap": asdict(self.bootstrap),
        }


@command
def run(  # noqa: PLR0913 - each is an option of the command
    sources: Annotated[
        list[Path], typer.Argument(metavar="RESCORED", help="Output of `rescore`, with refs.")
    ],
    *,
    weights: Annotated[
        Path | None,
        typer.Option(help="Rank anew with this weights file. [default: the order in the file]"),
    ] = None,
    baseline: Annotated[
        str,
        typer.Option(help="What is tested against: the decoder's order, or am (best am_score)."),
    ] = "order",
    against: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RESCORED",
            help="Test against these instead: the same utterances rescored by another model or "
            "with other weights, once for each RESCORED.",
        ),
    ] = None,
    against_weights: Annotated[
        Path | None, typer.Option(help="Rank those anew with this weights file.")
    ] = None,
    speakers: SpeakersOption = "all",
    speaker_of: SpeakerOfOption = SPEAKER_PATTERN,
) -> None:
    """Word error rate of the first pass, of rescoring and of the best hypothesis of each list.

    Words are compared as they stand: case, punctuation and [noise] count. Errors are the fewest
    edits, as Kaldi's compute-wer counts them; sclite's costs may make a few more. The test is
    MAPSSWE, in the segments of NIST's sc_stats; the interval is a paired bootstrap over utterances
    of the change in WER. The last line of output is one JSON object.

    secondpass evaluate test.rescored.jsonl.gz

    secondpass evaluate clean.jsonl other.jsonl --weights weights.json --speakers odd

    secondpass evaluate 2bit.jsonl.gz --weights 2bit.json --against 4bit.jsonl.gz --against-weights
    4bit.json
    """
    if baseline not in BASELINES:
        raise DataError(f"baseline is {baseline!r}; need one of {', '.join(BASELINES)}")
    others = _others(sources, against or [], against_weights)
    chosen = None if weights is None else read_weights(weights)
    of_others = None if against_weights is None else read_weights(against_weights)
    sets = {}
    spoken = []
    for source, other in zip(sources, others, strict=True):
        utterances = select_speakers(list(read_scored(source)), speakers, speaker_of)
        note_doubts(source, utterances)
        spoken.append(dict.fromkeys((one.id, one.ref) for one in utterances))
        sets[str(source)] = replace(
            _answers(utterances, chosen),
            other=[] if other is None else _best_of_same(utterances, other, of_others),
        )
    if against:
        baseline = "against"
    if len(sets) > 1:
        note_shared(spoken)
        sets["all"] = _join(list(sets.values()))
    reports = {name: _report(name, answers, baseline) for name, answers in sets.items()}
    _print(reports, baseline)
    records = {name: report.to_record() for name, report in reports.items()}
    print_json({"baseline": baseline, "speakers": speakers, "sets": records})


def _others(
    sources: Sequence[Path], against: Sequence[Path], weights: Path | None
) -> Sequence[Path | None]:
    """What each set is compared with."""
    for source in sources:
        if sources.count(source) > 1:
            raise DataError(f"{source}: is given twice; need each set once")
    if against and len(against) != len(sources):
        raise DataError(
            f"--against is given {len(against)} times; need {len(sources)}, one per set"
        )
    if weights is not None and not against:
        raise DataError("--against-weights needs --against")
    return against or [None] * len(sources)


def _answers(utterances: Sequence[ScoredUtterance], weights: Weights | None) -> Answers:
    texts = [[hypothesis.text for hypothesis in u.hypotheses] for u in utterances]
    references = [reference(utterance) for utterance in utterances]
    am_scores = [[h.am for h in u.hypotheses if h.am is not None] for u in utterances]
    has_am = list(map(len, am_scores)) == list(map(len, texts))
    return Answers(
        references=references,
        first_pass=[own[0] for own in texts],
        am=[
            own[scores.index(max(scores))]
            for own, scores in zip(texts, am_scores, strict=True)
            if has_am
        ],
        rescored=[
            own[_best(utterance, weights)] for own, utterance in zip(texts, utterances, strict=True)
        ],
        oracle=[own[oracle(ref, own)] for own, ref in zip(texts, references, strict=True)],
        other=[],
    )


def _best_of_same(
    utterances: Sequence[ScoredUtterance], other: Path, weights: Weights | None
) -> list[str]:
    """The best texts of the same utterances in another file."""
    by_id: dict[str, ScoredUtterance] = {}
    for utterance in read_scored(other):
        if by_id.setdefault(utterance.id, utterance) is not utterance:
            raise DataError(f"{other}: utterance {utterance.id!r} stands there twice; need it once")
    best = []
    for utterance in utterances:
        match = by_id.get(utterance.id)
        if match is None or reference(match) != reference(utterance):
            raise DataError(f"{other}: has no utterance {utterance.id!r} with the same reference")
        best.append(match.hypotheses[_best(match, weights)].text)
    return best


def _best(utterance: ScoredUtterance, weights: Weights | None) -> int:
    return utterance.order[0] if weights is None else best_hypothesis(utterance, weights)


def _join(sets: Sequence[Answers]) -> Answers:
    return Answers(
        references=[text for one in sets for text in one.references],
        first_pass=[text for one in sets for text in one.first_pass],
        am=[text for one in sets for text in one.am] if all(one.am for one in sets) else [],
        rescored=[text for one in sets for text in one.rescored],
        oracle=[text for one in sets for text in one.oracle],
        other=[text for one in sets for text in one.other],
    )


def _report(name: str, answers: Answers, baseline: str) -> SetReport:
    if not any(text.split() for text in answers.references):
        raise DataError(f"{name}: no reference words among the chosen utterances")
    before = {"am": answers.am, "against": answers.other, "order": answers.first_pass}[baseline]
    if not before:
        raise DataError(f"{name}: baseline 'am' needs an am_score of every hypothesis")
    systems = {
        "first_pass": answers.first_pass,
        **({"am": answers.am} if answers.am else {}),
        **({"against": answers.other} if answers.other else {}),
        "rescored": answers.rescored,
        "oracle": answers.oracle,
    }
    return SetReport(
        systems={
            system: pooled(zip(answers.references, texts, strict=True))
            for system, texts in systems.items()
        },
        mapsswe=mapsswe(answers.references, before, answers.rescored),
        bootstrap=bootstrap_interval(
            _errors(answers.references, before),
            _errors(answers.references, answers.rescored),
            np.array([len(text.split()) for text in answers.references], np.int64),
            replications=_REPLICATIONS,
        ),
    )


def _errors(references: Sequence[str], texts: Sequence[str]) -> NDArray[np.int64]:
    return np.concatenate(
        [error_counts(ref, [text]) for ref, text in zip(references, texts, strict=True)]
    )


def _table(title: str, headings: Sequence[str]) -> Table:
    """A row per set; where there is no room its name and its numbers are broken, and never cut."""
    table = Table(title=title)
    table.add_column("set", overflow="fold")
    for heading in headings:
        table.add_column(heading.replace("_", " "), justify="right", overflow="fold")
    return table


def _print(reports: Mapping[str, SetReport], baseline: str) -> None:
    shown = ["first_pass", "am", "rescored", "oracle"]
    if baseline == "against":
        shown.insert(2, "against")
    words = _table("word error rate, %", ["utterances", "words", *shown])
    tests = _table(
        f"rescored against {BASELINES.get(baseline, 'the other files')}",
        ["change, % absolute", "95 % interval", "MAPSSWE p", "segments"],
    )
    for name, report in reports.items():
        counts = report.systems["rescored"]
        words.add_row(
            name,
            f"{counts.utterances}",
            f"{counts.words}",
            *(
                f"{100 * report.systems[system].rate:.2f}" if system in report.systems else "-"
                for system in shown
            ),
        )
        interval = report.bootstrap
        tests.add_row(
            name,
            f"{100 * interval.difference:+.2f}",
            f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}",
            f"{report.mapsswe.p:.3g}",
            f"{report.mapsswe.segments}",
        )
    console = out()
    console.print(words)
    console.print(tests)
    for name, report in reports.items():
        for test, remark in (
            ("MAPSSWE", report.mapsswe.remark),
            ("bootstrap", report.bootstrap.remark),
        ):
            if remark:
                console.print(f"{name}: {test}: {remark}", soft_wrap=True)
