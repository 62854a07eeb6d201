"""`secondpass tune`: the weights with the fewest word errors on a dev set, from stored scores."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from quantized_lm.cli.console import command, note, out, print_json, progress
from quantized_lm.cli.doubts import note_doubts
from quantized_lm.combine import formula
from quantized_lm.cross_validation import FOLDS, folds_of, keeps_groups, unseen_errors
from quantized_lm.dev_set import (
    SPEAKER_PATTERN,
    default_free,
    nine_places,
    rounded_weights,
    select_speakers,
    speaker_groups,
    start_values,
    tuning_set,
)
from quantized_lm.files import require_file_name
from quantized_lm.scored import read_scored
from quantized_lm.tuning import TuningResult, TuningSet, count_errors, tune
from quantized_lm.weights_file import read_weights, write_weights

SpeakersOption = Annotated[
    str, typer.Option(help="all, or even or odd: every second speaker, sorted by name.")
]
SpeakerOfOption = Annotated[
    str, typer.Option(help="Regular expression that finds the speaker in an utterance id.")
]


@command
def run(  # noqa: PLR0913 - each is an option of the command
    source: Annotated[Path, typer.Argument(metavar="DEV", help="Output of `rescore`, with refs.")],
    target: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="Weights file to write.")],
    *,
    free: Annotated[
        list[str] | None,
        typer.Option(
            help="Weight to tune: graph, lm[NAME], extra[NAME], words, tokens or chars; may be "
            "repeated. [default: every LM, words, and graph if the lists have it]"
        ),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Weights file to start from and to keep the rest of.")
    ] = None,
    speakers: SpeakersOption = "all",
    speaker_of: SpeakerOfOption = SPEAKER_PATTERN,
    folds: Annotated[
        int,
        typer.Option(
            min=0,
            help="Parts of the cross-validation, split by speaker, or list by list where there are "
            "fewer speakers than parts; 0: none.",
        ),
    ] = FOLDS,
    restarts: Annotated[int, typer.Option(min=1, help="Starting points of the search.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same weights.")] = 0,
) -> None:
    """Search the weights exactly along lines (Och) with Powell restarts. Runs no model.

    What they are worth on lists they were not tuned on is estimated too: each fifth of the set is
    ranked by weights tuned on the other four. Where that gains nothing, do not expect more of
    the weights elsewhere.

    Tune on one half of the speakers and test on the other:

    secondpass tune scored.jsonl.gz weights.json --speakers even

    secondpass evaluate scored.jsonl.gz --weights weights.json --speakers odd

    Tune only the LM's scale:

    secondpass tune dev.jsonl weights.json --free "lm[en-small]"
    """
    require_file_name(target, source)
    began = time.perf_counter()
    utterances = select_speakers(list(read_scored(source)), speakers, speaker_of)
    data = tuning_set(utterances)
    note_doubts(source, utterances)
    unranked = sum(not utterance.is_ranked for utterance in utterances)
    if unranked:
        note(f"warning: {unranked} utterances could not be ranked and are left out")
    initial = start_values(data.names, read_weights(start) if start is not None else None)
    tuned = free or default_free(data.names)
    result = tune(data, initial, tuned, restarts=restarts, seed=seed)
    weights = rounded_weights(data, result)
    groups = speaker_groups(utterances, speaker_of)
    fold = folds_of(groups, folds=max(folds, 1), seed=seed)
    unseen = _cross_validated(data, fold, initial, tuned, restarts=restarts, seed=seed)
    by = "speaker" if keeps_groups(groups, folds=folds) else "list"
    report: dict[str, object] = {
        "dev": str(source),
        "speakers": speakers,
        "utterances": int(data.starts.size),
        "words": data.words,
        "wer_first_pass": float(data.errors[data.starts].sum()) / data.words,
        **_am_alone(data),
        "wer_tuned": result.errors / data.words,
        **unseen,
        **({"folds_by": by} if unseen else {}),
        "wer_oracle": float(np.minimum.reduceat(data.errors, data.starts).sum()) / data.words,
        "free": list(tuned),
        "flatness": [asdict(entry) for entry in result.flatness],
        "line_searches": result.line_searches,
        "restarts": restarts,
        "seed": seed,
    }
    write_weights(target, weights, report)
    _print(report, result, formula(weights), time.perf_counter() - began)
    _note_no_gain(report)
    print_json({"weights": str(target), "formula": formula(weights), **report})


def _am_alone(data: TuningSet) -> dict[str, float]:
    """WER of the best am_score, where the lists have one."""
    if "am" not in data.names:
        return {}
    weights = np.array([float(name == "am") for name in data.names])
    return {"wer_am_alone": count_errors(data, weights) / data.words}


def _cross_validated(
    data: TuningSet,
    fold: NDArray[np.int64],
    initial: Mapping[str, float],
    tuned: Sequence[str],
    *,
    restarts: int,
    seed: int,
) -> dict[str, object]:
    """WER of lists by weights that were tuned without them; nothing where there is one fold."""
    count = np.unique(fold).size
    if count < 2:
        return {}
    with progress("folds") as bar:
        by_fold = unseen_errors(data, fold, initial, tuned, restarts=restarts, seed=seed)
        errors = sum(bar.track(by_fold, total=count, description="cross-validating"))
    return {"wer_cross_validated": errors / data.words, "folds": count}


def _note_no_gain(report: Mapping[str, Any]) -> None:
    """Warn if tuning gains nothing on lists it has not seen."""
    if "wer_cross_validated" not in report:
        return
    untuned = [(report["wer_first_pass"], "as they came")]
    if "wer_am_alone" in report:
        untuned.append((report["wer_am_alone"], "by am alone"))
    least, how = min(untuned)
    unseen = report["wer_cross_validated"]
    if unseen >= least:
        note(
            f"warning: tuned on a part of these lists and measured on the rest, WER is "
            f"{100 * unseen:.2f} %, and {100 * least:.2f} % {how}: expect no gain elsewhere; more "
            "lists, or fewer weights (--free), may help"
        )


def _print(report: dict[str, object], result: TuningResult, text: str, seconds: float) -> None:
    console = out()
    console.print(f"{report['utterances']} utterances, {report['words']} words")
    table = Table()
    table.add_column("dev")
    table.add_column("WER %", justify="right")
    for label, key in (
        ("first pass", "wer_first_pass"),
        ("tuned", "wer_tuned"),
        ("tuned, cross-validated", "wer_cross_validated"),
        ("oracle", "wer_oracle"),
    ):
        if key in report:
            table.add_row(label, f"{100 * float(str(report[key])):.2f}")
    flat = Table(title="one weight moved, the others kept")
    for heading in ("weight", "value", "same WER", "at most 0.05 % more"):
        flat.add_column(heading, justify="left" if heading == "weight" else "right")
    for entry in result.flatness:
        flat.add_row(
            entry.name,
            f"{nine_places(entry.value):.4g}",
            f"{entry.same[0]:.4g} to {entry.same[1]:.4g}",
            f"{entry.near[0]:.4g} to {entry.near[1]:.4g}",
        )
    console.print(table)
    console.print(flat)
    console.print(f"{text}   ({result.line_searches} line searches, {seconds:.1f} s)")
