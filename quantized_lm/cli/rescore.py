"""`secondpass rescore`: n-best lists or lattices in, lists in new order with every score out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from quantized_lm.artifact import LoadedModel, load_artifact, model_folder
from quantized_lm.cli.console import command, note, progress, refuse_unused
from quantized_lm.cli.corpus import Corpus
from quantized_lm.cli.devices import DeviceOption, ThreadsOption
from quantized_lm.cli.engines import ENGINES, LOCAL, engine_by_name
from quantized_lm.cli.lattice_options import (
    MAX_ARCS,
    MaxArcsOption,
    SymbolsOption,
    named_format,
    named_symbols,
)
from quantized_lm.cli.references import read_references
from quantized_lm.cli.remote import Server, rescore_all, wire_settings
from quantized_lm.cli.rescore_lattices import (
    LatticeSource,
    RescoredFolder,
    count_lattices,
    is_lattices,
    rescore_lattices,
)
from quantized_lm.cli.spool import readable_twice
from quantized_lm.cli.weighting import WeightOptions, resolve
from quantized_lm.combine import Weights, formula
from quantized_lm.errors import DataError, InputError, explain
from quantized_lm.files import require_file_name
from quantized_lm.lattice.files import lattice_files
from quantized_lm.lattice.formats import LATTICE_FORMATS, ReadOptions
from quantized_lm.lattice.limits import SearchLimits
from quantized_lm.list_scoring import require_rankable
from quantized_lm.nbest import (
    DEFAULT_FIRST_PASS,
    ORDER,
    Utterance,
    open_replace,
    read_records,
    read_utterances,
)
from quantized_lm.ops import AUTO
from quantized_lm.presets import PRESETS
from quantized_lm.scored import FAILED

Json = dict[str, object]
_LIMITS = SearchLimits()
_LISTS = (".jsonl", ".json")
_OF_LISTS = ("first_pass", "engine", "workers")
_OF_LATTICES = ("symbols", "max_arcs", "refs", "n_best", "order", "seeds", "lattice_out")
STOP, FIRST_PASS_STAYS = ON_ERROR = ("stop", "first-pass")
_FORMATS = ", ".join(LATTICE_FORMATS)


@command
def run(  # noqa: PLR0913 - each is an option of the command
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="N-best lists in JSON lines, or lattices; .gz too; or a pipe."
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Rescored lists; .gz packs them.")],
    *,
    model: Annotated[
        str | None,
        typer.Option(help="Model folder; with --url, a model's name. [default: en-small]"),
    ] = None,
    first_pass: Annotated[
        str,
        typer.Option(
            help="Which fields of utt/ref/hyps lines are the first pass: am|total|am+lm; or order: "
            "only the rank counts."
        ),
    ] = DEFAULT_FIRST_PASS,
    weights: Annotated[Path | None, typer.Option(help="Weights file made by `tune`.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="A toolkit's rule, NAME or NAME:PARAMETER=NUMBER,...; NAME is one of "
            f"{', '.join(PRESETS)}."
        ),
    ] = None,
    am_scale: Annotated[float | None, typer.Option(help="Factor of am_score.")] = None,
    graph_scale: Annotated[float | None, typer.Option(help="Factor of graph_score.")] = None,
    lm_scale: Annotated[float | None, typer.Option(help="Factor of the LM's score.")] = None,
    word_bonus: Annotated[float | None, typer.Option(help="Added per word, nats.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Rescore lists through the server at this address.")
    ] = None,
    lattice_format: Annotated[
        str | None,
        typer.Option("--format", help=f"IN is lattices in {_FORMATS}. [default: by its suffix]"),
    ] = None,
    symbols: SymbolsOption = None,
    max_arcs: MaxArcsOption = MAX_ARCS,
    engine: Annotated[
        str, typer.Option(help=f"Where lists are rescored without --url: {'|'.join(ENGINES)}")
    ] = LOCAL,
    workers: Annotated[
        int, typer.Option(min=0, help="Of --engine ray, at most; 0: one per CPU of the cluster.")
    ] = 0,
    refs: Annotated[
        Path | None,
        typer.Option(
            metavar="LISTS",
            help='What was said in the lattices: n-best lists with `ref`, or lines "id text".',
        ),
    ] = None,
    n_best: Annotated[
        int,
        typer.Option(min=1, help="Sequences of each lattice, and its own best if it is not there."),
    ] = 10,
    order: Annotated[
        int, typer.Option(min=0, help="Words after which histories are one, plus 1; 0: never.")
    ] = _LIMITS.order or 0,
    seeds: Annotated[
        int, typer.Option(min=1, help="Sequences of each lattice that are scored first.")
    ] = _LIMITS.seeds,
    lattice_out: Annotated[
        Path | None, typer.Option(help="Folder for rescored lattices, in IN's format.")
    ] = None,
    on_error: Annotated[
        str,
        typer.Option(
            metavar="|".join(ON_ERROR),
            help="What becomes of a list that cannot be ranked (a text longer than the model, a "
            "score that is missing) or of an empty lattice: it ends all, or keeps the decoder's "
            "order, and has an empty text.",
        ),
    ] = STOP,
    api_key: Annotated[
        str,
        typer.Option(envvar="SECONDPASS_API_KEY", help="Of --url; safer in the environment."),
    ] = "",
    device: DeviceOption = AUTO,
    threads: ThreadsOption = 0,
) -> None:
    """Score every hypothesis with the LM and rank each list by its total.

    Scores are natural logs, higher is better. Lines are {"id", "ref", "hypotheses": [{"text",
    "am_score", "graph_score"}]} or {"utt", "ref", "hyps": [{"text", "am", "lm", "total"}]}; "ref"
    is what was said, for `tune` and `evaluate`. Single weights come before those of a file or a
    preset; without either, what is not given is the model's own.

    IN may also be a lattice, a Kaldi archive or a folder of lattices: their best sequences are
    found, and written like lists. Their first pass is the best path by the same weights without
    the LM; --refs adds what was said, for `tune` and `evaluate`.

    The output keeps every score, so that `tune` and `evaluate` need no model. It appears under
    its name only once it is complete.

    secondpass rescore dev.jsonl.gz dev.rescored.jsonl.gz

    secondpass rescore dev.jsonl out.jsonl --first-pass am+lm --graph-scale 8 --lm-scale 4

    secondpass rescore test.jsonl out.jsonl --weights weights.json

    secondpass rescore test.jsonl out.jsonl --preset nemo:alpha=0.5,beta=0.1

    secondpass rescore test.jsonl out.jsonl --url http://127.0.0.1:8080

    secondpass rescore corpus.jsonl.gz out.jsonl.gz --engine ray --workers 32

    secondpass rescore lattices/ out.jsonl --lattice-out rescored/

    secondpass rescore lats.ark out.jsonl --symbols words.txt --graph-scale 1 --n-best 100

    secondpass rescore lattices/ out.jsonl --refs lists.jsonl.gz
    """
    is_of_lattices = lattice_format is not None or is_lattices(source)
    given_format = named_format(lattice_format)
    files = lattice_files(source, given=given_format) if is_of_lattices else [source]
    read = [*files, weights, refs, symbols]
    _require_kept(source, read, target, lattice_out)
    if on_error not in ON_ERROR:
        raise DataError(f"--on-error is {on_error!r}; need one of {', '.join(ON_ERROR)}")
    given = {"am_scale": am_scale, "graph_scale": graph_scale, "word_bonus": word_bonus}
    options = WeightOptions(
        file=weights,
        preset=preset,
        lm_scale=lm_scale,
        numbers={name: value for name, value in given.items() if value is not None},
    )
    if is_of_lattices and url is not None:
        raise DataError("--url takes n-best lists; post lattices to /v1/rescore/lattice")
    refuse_unused(context, _unused(is_of_lattices=is_of_lattices, engine=engine, url=url))
    with readable_twice(source) as twice:
        if is_of_lattices:
            loaded, chosen = _model_and_weights(model, options, device, threads)
            lattices = LatticeSource(
                twice,
                given_format,
                ReadOptions(
                    symbols=named_symbols(symbols),
                    max_arcs=max_arcs,
                    keeps_empty=True,
                ),
                read_references(refs) if refs is not None else None,
                keeps_failed=on_error == FIRST_PASS_STAYS,
            )
            _note_formula(loaded, chosen)
            limits = replace(_LIMITS, num_best=n_best, order=order or None, seeds=seeds)
            folder = RescoredFolder(lattice_out, read)
            count = count_lattices(lattices, folder)
            _write(target, rescore_lattices(lattices, loaded, chosen, limits, folder), count)
            folder.write()
            return
        records: Iterable[Json]
        if url is not None:
            if engine != LOCAL:
                raise DataError(f"got --url and --engine {engine}; give one of them")
            server = Server(
                url,
                wire_settings(options, model),
                api_key,
                keeps_failed=on_error == FIRST_PASS_STAYS,
            )
            count = _count_lists(twice, first_pass)
            utterances = read_utterances(twice, first_pass=first_pass)
            records = chain.from_iterable(rescore_all(server, utterances))
        else:
            rescored = engine_by_name(engine, device)
            corpus = Corpus(
                twice,
                first_pass,
                model=model_folder(model),
                workers=workers,
                keeps_failed=on_error == FIRST_PASS_STAYS,
            )
            loaded, chosen = _model_and_weights(model, options, device, threads)
            check = partial(_require_rankable, loaded=loaded, weights=chosen)
            count = _count_lists(twice, first_pass, None if corpus.keeps_failed else check)
            _note_formula(loaded, chosen)
            records = rescored(corpus, loaded, chosen)
        _write(target, records, count)


def _require_kept(
    source: Path, read: Sequence[Path | None], target: Path, lattice_out: Path | None
) -> None:
    """Pass if nothing that is read would be written over: the folder, or a file."""
    require_file_name(target, *read)
    if lattice_out is None or not (source.is_dir() and lattice_out.is_dir()):
        return
    if source.samefile(lattice_out):
        raise DataError(f"{lattice_out}: is what is read, and would be lost; need another folder")


def _unused(*, is_of_lattices: bool, engine: str, url: str | None) -> dict[str, str]:
    """The options that would do nothing, and what each of them needs."""
    if is_of_lattices:
        return dict.fromkeys(_OF_LISTS, "n-best lists, and IN is lattices")
    lattices = "lattices, and IN is none by its name: give --format too"
    unused = dict.fromkeys(_OF_LATTICES, lattices)
    if engine == LOCAL:
        unused["workers"] = "--engine ray"
    if url is not None:
        on_this_machine = "a model on this machine, and the one of --url is not"
        unused |= {"device": on_this_machine, "threads": on_this_machine}
    else:
        unused["api_key"] = "--url"
    return unused


def _count_lists(
    source: Path, first_pass: str, check: Callable[[Utterance], None] | None = None
) -> int:
    """How many there are; all are read before any is scored: a fault at the end costs no work."""
    utterances = read_utterances(source, first_pass=first_pass)
    try:
        first = next(utterances, None)
    except DataError as error:
        if source.name.lower().removesuffix(".gz").endswith(_LISTS):
            raise
        # Kaldi's archives are often called lat.1.gz, which says nothing.
        raise DataError(f"{error}; lattices need --format, one of {_FORMATS}") from None
    count = 0
    for utterance in chain(() if first is None else (first,), utterances):
        if check is not None:
            check(utterance)
        count += 1
    chooses = first_pass not in (DEFAULT_FIRST_PASS, ORDER)
    if count and chooses and all("hypotheses" in record for _, record in read_records(source)):
        raise DataError(
            f"--first-pass {first_pass} chooses among fields of utt/ref/hyps lines, and {source} "
            "has none; leave it out: am_score and graph_score are the first pass"
        )
    return count


def _require_rankable(utterance: Utterance, *, loaded: LoadedModel, weights: Weights) -> None:
    try:
        require_rankable(utterance, loaded, weights)
    except InputError as error:
        remedy = "--on-error first-pass keeps the decoder's order of such a list"
        if error.pointer.endswith(("/am_score", "/graph_score")):
            remedy = f"--first-pass says which fields of utt/ref/hyps lines are scores; {remedy}"
        raise DataError(f"utterance {utterance.id!r}: {explain(error)}; {remedy}") from None


def _model_and_weights(
    model: str | None, options: WeightOptions, device: str, threads: int
) -> tuple[LoadedModel, Weights]:
    loaded = load_artifact(model_folder(model), device=device, threads=threads or None)
    return loaded, resolve(options, loaded.name, loaded.manifest.default_weights)


def _note_formula(loaded: LoadedModel, weights: Weights) -> None:
    note(f"{loaded.name} ({loaded.backend}): {formula(weights)}")


def _write(target: Path, records: Iterable[Json], count: int) -> None:
    changed = degraded = failed = done = 0
    first_failure: object = ""
    began = time.perf_counter()
    with open_replace(target) as handle, progress("utterances") as bar:
        task = bar.add_task("rescoring", total=count)
        for record in records:
            handle.write(json.dumps(record, ensure_ascii=False) + "\n")
            done += 1
            changed += bool(record["changed"])
            if record["degraded"] == [FAILED]:
                failed += 1
                first_failure = first_failure or record["detail"]
            else:
                degraded += bool(record["degraded"])
            bar.advance(task)
        if done != count:
            raise DataError(f"{target}: {done} results of {count} utterances; IN was changed")
    speed = done / (time.perf_counter() - began)
    note(f"{target}: {done} utterances, {changed} with a new best, {speed:.1f} utterances/s")
    if failed:
        note(
            f"warning: {failed} utterances could not be ranked and keep the decoder's order; the "
            f"first: {first_failure}"
        )
    if degraded:
        note(f"warning: {degraded} utterances came back degraded: a limit ended their scoring")
