"""`secondpass compare`: what a lattice gives over n-best lists, with one LM."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from quantized_lm.artifact import DEFAULT_MODEL, load_artifact, model_folder
from quantized_lm.bench.lattice_comparison import (
    DECODER_LIST,
    LATTICE,
    Comparison,
    LatticeWeights,
    Spoken,
    SystemResult,
    compare,
    count_passes,
)
from quantized_lm.cli.console import command, note, out, print_json, progress
from quantized_lm.cli.devices import DeviceOption, ThreadsOption
from quantized_lm.cli.lattice_options import (
    MAX_ARCS,
    MaxArcsOption,
    SymbolsOption,
    named_format,
    named_symbols,
)
from quantized_lm.errors import DataError
from quantized_lm.lattice.files import lattice_files, read_lattices
from quantized_lm.lattice.formats import LATTICE_FORMATS, LatticeFormat, ReadOptions
from quantized_lm.lattice.lattice import Lattice
from quantized_lm.lattice.limits import ENDLESS, SearchLimits
from quantized_lm.machine import processor_name
from quantized_lm.nbest import Utterance, read_utterances
from quantized_lm.ops import AUTO
from quantized_lm.significance import mapsswe

_FORMATS = ", ".join(LATTICE_FORMATS)
_OF_LATTICE = "of the lattice alone"


@command
def run(  # noqa: PLR0913 - each is an option of the command
    lattices: Annotated[
        list[Path], typer.Argument(metavar="LATTICES", help="Files or folders of lattices.")
    ],
    *,
    lists: Annotated[
        list[Path],
        typer.Option(help="n-best lists with `ref`, by the lattices' utterance ids; repeatable."),
    ],
    lattice_format: Annotated[
        str | None, typer.Option("--format", help=f"Of the lattices: {_FORMATS}. [default: suffix]")
    ] = None,
    symbols: SymbolsOption = None,
    max_arcs: MaxArcsOption = MAX_ARCS,
    model: Annotated[
        Path | None, typer.Option(help=f"Model folder. [default: {DEFAULT_MODEL}]")
    ] = None,
    size: Annotated[
        list[int] | None,
        typer.Option(help="Of a list made of the lattice; repeatable. [default: 10, 100, 1000]"),
    ] = None,
    lm_scale: Annotated[float, typer.Option(help="To tune from.")] = 10.0,
    word_bonus: Annotated[float, typer.Option(help="To tune from, nats.")] = -8.0,
    device: DeviceOption = AUTO,
    threads: ThreadsOption = 0,
) -> None:
    """Rescore lattices, their n-best lists and the decoder's, and count words, steps and time.

    Totals are am + lm_scale * lm + word_bonus * words. Both are tuned on every second utterance and
    used on the others, and the other way round: every utterance is reported once.

    secondpass compare lattices/ --lists lists.jsonl.gz
    """
    sizes = tuple(size or (10, 100, 1000))
    _require_usable(sizes, {"--lm-scale": lm_scale, "--word-bonus": word_bonus})
    given = named_format(lattice_format)
    reading = ReadOptions(symbols=named_symbols(symbols), max_arcs=max_arcs)
    spoken = _spoken(lattices, lists, given, reading)
    loaded = load_artifact(model_folder(model), device=device, threads=threads or None)
    with progress("utterances") as bar:
        task = bar.add_task("rescore", total=(count_passes(sizes) + 1) * len(spoken))
        comparison = compare(
            spoken,
            loaded,
            sizes=sizes,
            limits=SearchLimits(),
            start=LatticeWeights(lm_scale, word_bonus),
            done=lambda: bar.advance(task),
        )
    out().print(_table(comparison))
    for one in comparison.systems:
        if one.name != LATTICE:
            out().print(_verdict(spoken, comparison, one))
    print_json(_record(comparison, loaded.name, loaded.backend))


def _require_usable(sizes: Sequence[int], weights: Mapping[str, float]) -> None:
    for size in sizes:
        if not 1 <= size <= ENDLESS:
            raise DataError(f"--size is {size}; need 1 or more, at most {ENDLESS}")
    for name, value in weights.items():
        if not math.isfinite(value):
            raise DataError(f"{name} is {value}; need a finite number")


def _spoken(
    sources: Sequence[Path],
    lists: Sequence[Path],
    given: LatticeFormat | None,
    reading: ReadOptions,
) -> list[Spoken]:
    by_id: dict[str, Utterance] = {}
    for listed in chain.from_iterable(map(read_utterances, lists)):
        if by_id.setdefault(listed.id, listed) is not listed:
            raise DataError(f"--lists: utterance {listed.id!r} stands there twice; need it once")
    found: dict[str, Spoken] = {}
    without = 0
    for lattice in _lattices(sources, given, reading):
        name = lattice.utterance
        if name in found:
            raise DataError(f"LATTICES: utterance {name!r} stands there twice; need it once")
        if name in by_id:
            found[name] = _one(lattice, by_id[name])
        else:
            without += 1
    if not found:
        raise DataError("no lattice has the utterance id of a list; need ids that agree")
    if without:
        note(f"warning: {without} lattices have no list and are left out")
    return list(found.values())


def _lattices(
    sources: Sequence[Path], given: LatticeFormat | None, reading: ReadOptions
) -> Iterator[Lattice]:
    for source in sources:
        for path in lattice_files(source, given=given):
            yield from read_lattices(path, reading, source=given)


def _one(lattice: Lattice, listed: Utterance) -> Spoken:
    if listed.ref is None:
        raise DataError(f"utterance {listed.id!r} has no ref; need what was said")
    am = tuple(one.am_score for one in listed.hypotheses if one.am_score is not None)
    has_all = len(am) == len(listed.hypotheses)
    texts = tuple(one.text for one in listed.hypotheses) if has_all else ()
    return Spoken(listed.id, listed.ref, lattice, texts, am if has_all else ())


def _name(one: SystemResult) -> str:
    return one.name if one.name in {DECODER_LIST, LATTICE} else f"{one.name} {_OF_LATTICE}"


def _table(comparison: Comparison) -> Table:
    table = Table()
    table.add_column("rescored")
    for title in ("LM steps", "log-probs", "time", "WER", "WER, own weights"):
        table.add_column(title, justify="right")
    lattice = comparison.systems[-1]
    first = f"{100 * comparison.first_pass_errors / comparison.words:.2f} %"
    table.add_row("nothing: best by am", "", "", "", first, "")
    for one in comparison.systems:
        table.add_row(
            _name(one),
            f"{one.lm_steps / comparison.utterances:.0f}",
            f"{one.tree_nodes / comparison.utterances:.0f}",
            f"{one.seconds / lattice.seconds:.2f}",
            f"{100 * one.errors / comparison.words:.2f} %",
            f"{100 * one.own_errors / comparison.words:.2f} %",
        )
    table.caption = (
        f"{comparison.utterances} utterances, {comparison.words} words. Steps and log-probs per "
        "utterance; time of the median utterance over that of the lattice. WER with the weights "
        "that were tuned for lattices, and with those tuned for the row itself."
    )
    return table


def _verdict(spoken: Sequence[Spoken], comparison: Comparison, one: SystemResult) -> str:
    references = [utterance.reference for utterance in spoken]
    lattice = comparison.systems[-1]
    test = mapsswe(references, one.answers, lattice.answers)
    remark = f" ({test.remark})" if test.remark else ""
    return f"lattice against {_name(one)}: MAPSSWE z {test.z:.2f}, p {test.p:.3g}{remark}"


def _record(comparison: Comparison, model: str, backend: str) -> dict[str, object]:
    return {
        "model": model,
        "backend": backend,
        "machine": processor_name(),
        "utterances": comparison.utterances,
        "words": comparison.words,
        "weights": [asdict(one) for one in comparison.weights],
        "wer_am_alone": comparison.first_pass_errors / comparison.words,
        "systems": [
            {
                "name": one.name,
                "wer": one.errors / comparison.words,
                "wer_own_weights": one.own_errors / comparison.words,
                "lm_steps": one.lm_steps,
                "tree_nodes": one.tree_nodes,
                "median_seconds": one.seconds,
            }
            for one in comparison.systems
        ],
    }
