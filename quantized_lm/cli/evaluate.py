"""`secondpass evaluate`: what rescoring did to the word error rate, and whether that is chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from quantized_lm.cli.console import command, out, print_json
from quantized_lm.cli.tune import SPEAKER_PATTERN, SpeakerOfOption, SpeakersOption
from quantized_lm.combine import Weights, combine
from quantized_lm.dev_set import reference, select_speakers
from quantized_lm.errors import DataError, InputError
from quantized_lm.scored import ScoredUtterance, components_of, read_scored
from quantized_lm.significance import BootstrapInterval, Mapsswe, bootstrap_interval, mapsswe
from quantized_lm.weights_file import read_weights
from quantized_lm.wer import WordErrors, error_counts, oracle, pooled

BASELINES = ("order", "am")
_REPLICATIONS = 10_000


@dataclass(frozen=True)
class Answers:
    """One set: the reference and each system's answer, per utterance; `am` is empty if unknown."""

    references: list[str]
    first_pass: list[str]
    am: list[str]
    rescored: list[str]
    oracle: list[str]


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
def run(
    sources: Annotated[
        list[Path], typer.Argument(metavar="RESCORED...", help="Output of `rescore`, with refs.")
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
    speakers: SpeakersOption = "all",
    speaker_of: SpeakerOfOption = SPEAKER_PATTERN,
) -> None:
    """Word error rate of the first pass, of rescoring and of the best hypothesis of each list.

    The test is MAPSSWE, as NIST's sc_stats does it; the interval is a paired bootstrap over
    utterances of the change in WER. The last line of output is one JSON object.

    secondpass evaluate test.rescored.jsonl.gz

    secondpass evaluate clean.jsonl other.jsonl --weights weights.json --speakers odd
    """
    if baseline not in BASELINES:
        raise DataError(f"baseline is {baseline!r}; need one of {', '.join(BASELINES)}")
    chosen = None if weights is None else read_weights(weights)
    sets = {}
    for source in sources:
        utterances = select_speakers(list(read_scored(source)), speakers, speaker_of)
        sets[str(source)] = _answers(utterances, chosen)
    if len(sets) > 1:
        sets["all"] = _join(list(sets.values()))
    reports = {name: _report(name, answers, baseline) for name, answers in sets.items()}
    _print(reports, baseline)
    records = {name: report.to_record() for name, report in reports.items()}
    print_json({"baseline": baseline, "speakers": speakers, "sets": records})


def _answers(utterances: Sequence[ScoredUtterance], weights: Weights | None) -> Answers:
    texts = [[hypothesis.text for hypothesis in u.hypotheses] for u in utterances]
    references = [reference(utterance) for utterance in utterances]
    has_am = all(h.am is not None for u in utterances for h in u.hypotheses)
    return Answers(
        references=references,
        first_pass=[own[0] for own in texts],
        am=[
            own[_best(utterance, Weights())]
            for own, utterance in zip(texts, utterances, strict=True)
            if has_am
        ],
        rescored=[
            own[_best(utterance, weights)] for own, utterance in zip(texts, utterances, strict=True)
        ],
        oracle=[own[oracle(ref, own)] for own, ref in zip(texts, references, strict=True)],
    )


def _best(utterance: ScoredUtterance, weights: Weights | None) -> int:
    if weights is None:
        return utterance.order[0]
    try:
        return int(combine(components_of(utterance.hypotheses), weights).order[0])
    except InputError as error:
        raise DataError(f"utterance {utterance.id!r}: {error.pointer}: {error}") from None


def _join(sets: Sequence[Answers]) -> Answers:
    return Answers(
        references=[text for one in sets for text in one.references],
        first_pass=[text for one in sets for text in one.first_pass],
        am=[text for one in sets for text in one.am] if all(one.am for one in sets) else [],
        rescored=[text for one in sets for text in one.rescored],
        oracle=[text for one in sets for text in one.oracle],
    )


def _report(name: str, answers: Answers, baseline: str) -> SetReport:
    if not any(text.split() for text in answers.references):
        raise DataError(f"{name}: no reference words among the chosen utterances")
    before = answers.am if baseline == "am" else answers.first_pass
    if not before:
        raise DataError(f"{name}: baseline 'am' needs an am_score of every hypothesis")
    systems = {
        "first_pass": answers.first_pass,
        **({"am": answers.am} if answers.am else {}),
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


def _print(reports: Mapping[str, SetReport], baseline: str) -> None:
    words = Table(title="word error rate, %")
    for heading in ("set", "utterances", "words", "first pass", "am", "rescored", "oracle"):
        words.add_column(heading, justify="left" if heading == "set" else "right")
    against = "the decoder's order" if baseline == "order" else "the best am_score"
    tests = Table(title=f"rescored against {against}")
    for heading in ("set", "change, % absolute", "95 % interval", "MAPSSWE p", "segments"):
        tests.add_column(heading, justify="left" if heading == "set" else "right")
    for name, report in reports.items():
        counts = report.systems["rescored"]
        words.add_row(
            name,
            f"{counts.utterances}",
            f"{counts.words}",
            *(
                f"{100 * report.systems[system].rate:.2f}" if system in report.systems else "-"
                for system in ("first_pass", "am", "rescored", "oracle")
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
