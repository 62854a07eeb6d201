"""`secondpass rescore`: n-best lists in, the same lists with every score and in new order out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from quantized_lm.artifact import LoadedModel, bundled_path, load_artifact
from quantized_lm.cli.console import command, explain, note, progress
from quantized_lm.cli.remote import Server, rescore_all, wire_settings
from quantized_lm.cli.weighting import WeightOptions, resolve
from quantized_lm.combine import Weights, combine, formula
from quantized_lm.errors import DataError, InputError
from quantized_lm.nbest import DEFAULT_FIRST_PASS, Utterance, open_replace, read_utterances
from quantized_lm.scored import LmColumn, components_of, join, result_record
from quantized_lm.scoring import ListScores, PreparedList, ScoreRequest, prepare, run_batch

Json = dict[str, object]
DEFAULT_MODEL = "en-small"
_BATCH_TOKENS = 1024  # larger ones were slower on two cores, and take more memory


@command
def run(  # noqa: PLR0913 - each is an option of the command
    source: Annotated[Path, typer.Argument(metavar="IN", help="N-best lists, JSON lines or .gz.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Rescored lists; .gz packs them.")],
    *,
    model: Annotated[
        str | None,
        typer.Option(help="Model folder; with --url, a model's name. [default: en-small]"),
    ] = None,
    first_pass: Annotated[
        str,
        typer.Option(help="Which fields of utt/ref/hyps lines are the first pass: am|total|am+lm"),
    ] = DEFAULT_FIRST_PASS,
    weights: Annotated[Path | None, typer.Option(help="Weights file made by `tune`.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="A toolkit's rule, NAME or NAME:PARAMETER=NUMBER,..."),
    ] = None,
    am_scale: Annotated[float | None, typer.Option(help="Factor of am_score.")] = None,
    graph_scale: Annotated[float | None, typer.Option(help="Factor of graph_score.")] = None,
    lm_scale: Annotated[float | None, typer.Option(help="Factor of the LM's score.")] = None,
    word_bonus: Annotated[float | None, typer.Option(help="Added per word, nats.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Rescore through the server at this address.")
    ] = None,
) -> None:
    """Score every hypothesis with the LM and rank each list by its total.

    The output keeps every score, so that `tune` and `evaluate` need no model. It appears under
    its name only once it is complete.

    secondpass rescore dev.jsonl.gz dev.rescored.jsonl.gz

    secondpass rescore dev.jsonl out.jsonl --first-pass am+lm --graph-scale 8 --lm-scale 4

    secondpass rescore test.jsonl out.jsonl --weights weights.json

    secondpass rescore test.jsonl out.jsonl --preset nemo:alpha=0.5,beta=0.1

    secondpass rescore test.jsonl out.jsonl --url http://127.0.0.1:8080
    """
    given = {"am_scale": am_scale, "graph_scale": graph_scale, "word_bonus": word_bonus}
    options = WeightOptions(
        file=weights,
        preset=preset,
        lm_scale=lm_scale,
        numbers={name: value for name, value in given.items() if value is not None},
    )
    # All lines are checked before any is scored: a fault at the end costs no hour of work.
    count = sum(1 for _ in read_utterances(source, first_pass=first_pass))
    utterances = read_utterances(source, first_pass=first_pass)
    records: Iterable[Json]
    if url is not None:
        server = Server(url, wire_settings(options, model))
        records = chain.from_iterable(rescore_all(server, utterances))
    else:
        loaded = load_artifact(bundled_path(DEFAULT_MODEL) if model is None else Path(model))
        chosen = resolve(options, loaded.name, loaded.manifest.default_weights)
        note(f"{loaded.name} ({loaded.backend}): {formula(chosen)}")
        records = rescore_local(utterances, loaded, chosen)
    _write(target, records, count)


def rescore_local(
    utterances: Iterable[Utterance], loaded: LoadedModel, weights: Weights
) -> Iterator[Json]:
    """Result lines of all utterances in order, several lists in one forward pass.

    Raises:
        DataError: a list cannot be ranked; the message names the utterance and the field.
    """
    for batch in _batches(utterances, loaded):
        lists = run_batch([prepared for _, prepared in batch], loaded)
        for (utterance, _), scores in zip(batch, lists, strict=True):
            column = lm_column(loaded.name, scores)
            with _named(utterance):
                ranking = combine(components_of(join(utterance, column)), weights)
            yield result_record(utterance, column, ranking)


def lm_column(name: str, scores: ListScores) -> LmColumn:
    """Scores of one list under one LM."""
    encoded = scores.prepared.encoded
    return LmColumn(
        scores={name: scores.log_prob.tolist()},
        num_words=encoded.num_words.tolist(),
        num_tokens=encoded.num_tokens.tolist(),
        oov=[scores.oov.get(position, ()) for position in range(len(scores.log_prob))],
    )


@contextmanager
def _named(utterance: Utterance) -> Iterator[None]:
    """Say which utterance a fault is in."""
    try:
        yield
    except InputError as error:
        raise DataError(f"utterance {utterance.id!r}: {explain(error)}") from None


def _batches(
    utterances: Iterable[Utterance], loaded: LoadedModel
) -> Iterator[list[tuple[Utterance, PreparedList]]]:
    batch: list[tuple[Utterance, PreparedList]] = []
    cost = 0
    for utterance in utterances:
        request = ScoreRequest(
            texts=tuple(hypothesis.text for hypothesis in utterance.hypotheses),
            context=utterance.context,
            final=utterance.final,
        )
        with _named(utterance):
            prepared = prepare(request, loaded)
        if batch and cost + prepared.cost_tokens > _BATCH_TOKENS:
            yield batch
            batch, cost = [], 0
        batch.append((utterance, prepared))
        cost += prepared.cost_tokens
    if batch:
        yield batch


def _write(target: Path, records: Iterable[Json], count: int) -> None:
    changed = degraded = done = 0
    began = time.perf_counter()
    with open_replace(target) as handle, progress("utterances") as bar:
        task = bar.add_task("rescoring", total=count)
        for record in records:
            handle.write(json.dumps(record, ensure_ascii=False) + "\n")
            done += 1
            changed += bool(record["changed"])
            degraded += bool(record["degraded"])
            bar.advance(task)
    speed = done / (time.perf_counter() - began)
    note(f"{target}: {done} utterances, {changed} with a new best, {speed:.1f} utterances/s")
    if degraded:
        note(f"warning: {degraded} utterances came back degraded, in first-pass order")
