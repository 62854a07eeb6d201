"""The report as Markdown. Every number comes out of the report; none is typed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantized_lm.pipeline.reproduce.report import ArchitectureInfo, Report
from quantized_lm.pipeline.reproduce.results import (
    FAILED,
    CellResult,
    Comparison,
    Numbers,
    TargetResult,
    by_architecture,
)
from quantized_lm.pipeline.reproduce.task import Target
from quantized_lm.pipeline.reproduce.word_errors import ListErrors, PathAgreement

_HEADINGS = (
    "model",
    "bytes",
    "compression",
    "bits/weight",
    "decoded",
    "perplexity dev",
    "perplexity test",
    "to float",
    "nats/token to float, 95 % interval",
    "training",
)
_VERDICTS = {True: "**reached**", False: "**missed**", None: "open"}


def render(report: Report, pictures: Sequence[str]) -> str:
    """The whole page.

    Args:
        pictures: file names, beside the page.
    """
    lines = [
        f"# {report.title}: size *{report.size}*",
        "",
        f"Made by `secondpass reproduce {report.task} --size {report.size}`; nothing is typed.",
        "",
        " ".join(filter(None, (report.protocol, report.size_note))),
        "Bytes are those of the weights' file with everything in it; compression is float32 bytes "
        "of the same architecture over them; decoded are the bits per weight in memory, where "
        "codes are not entropy-coded. Perplexities are per token, `</s>` counted. "
        "Differences are paired by line, with a bootstrap over lines.",
        "",
        *_origin(report),
        "",
        *(["## Targets", "", *_targets(report)] if report.goals else []),
    ]
    columns = by_architecture(report.cells)
    for info in report.architectures:
        cells = columns[info.architecture]
        lines += ["", *_table(info, cells), *_speech(report, cells)]
    lines += ["", "## Mixed against uniform precision", "", *_comparisons(report)]
    for name in pictures:
        lines += ["", f"![{name.rsplit('.', 1)[0].replace('-', ' ')}]({name})"]
    return "\n".join(lines) + "\n"


def bytes_text(size_bytes: int) -> str:
    """With thousands apart."""
    return f"{size_bytes:,}"


def _origin(report: Report) -> list[str]:
    origin = report.origin
    versions = ", ".join(f"{name} {number}" for name, number in origin.versions.items())
    measured = sum(cell.numbers is not None for cell in report.cells)
    return [
        f"{origin.made_at}; {origin.machine}; {versions}. {measured} of {len(report.cells)} cells "
        f"are measured, {_duration(origin.stage_seconds)} for the stages of the last run folder.",
        *_earlier(report),
    ]


def _earlier(report: Report) -> Iterator[str]:
    """Rows that were taken over, by when they were made."""
    rows: dict[str, list[str]] = {}
    for cell in report.cells:
        if cell.made:
            rows.setdefault(cell.made, []).append(f"{cell.architecture} `{cell.row}`")
    for made, names in rows.items():
        yield f"Made earlier ({made}), their time not counted: {', '.join(names)}."


def _targets(report: Report) -> Iterator[str]:
    for target, reached in zip(report.goals, report.reached, strict=True):
        yield f"- {_target_text(target)}: {_VERDICTS[reached]}."
        for result in report.targets:
            if result.target == target:
                yield f"  - {result.architecture}: {_target_result(result)}"


def _target_text(target: Target) -> str:
    interval = ", or no significant loss" if target.accepts_interval else ""
    words = ", no significantly higher word error rate" if target.keeps_wer else ""
    where = "for every architecture" if target.everywhere else "for at least one architecture"
    return (
        f"{target.compression:g}x: perplexity at most {100 * (target.max_ratio - 1):g} % above "
        f"float{interval}{words}, {where}"
    )


def _target_result(result: TargetResult) -> str:
    if result.numbers is None:
        return "no row of this size is measured."
    test = result.numbers.test
    return (
        f"{_VERDICTS[result.passed]} by `{result.row}`, the best on dev: "
        f"{result.numbers.compression:.2f}x, {_percent(test.perplexity_ratio)}, "
        f"{_difference(result.numbers)} nats per token{_changed_wer(result.numbers)}."
    )


def _changed_wer(numbers: Numbers) -> str:
    halves = [(one.name, one.held_out) for one in numbers.lists]
    return "".join(
        f"; WER % {_rate(half.float_wer)} to {_rate(half.wer)} (p {half.p:.2g}) on {name}"
        for name, half in halves
    )


def _table(info: ArchitectureInfo, cells: Sequence[CellResult]) -> Iterator[str]:
    sizes = ", ".join(f"{name} {value}" for name, value in info.model.items())
    yield f"## {info.architecture}"
    yield ""
    yield (
        f"{info.parameters:,} parameters ({sizes}), {bytes_text(info.float_bytes)} bytes in "
        f"float32, trained for {info.steps} steps{_start(info)}."
    )
    yield ""
    yield _row(_HEADINGS)
    yield _row(["---", *["---:"] * (len(_HEADINGS) - 1)])
    for cell in cells:
        yield _row([cell.label, *_numbers(cell)])


def _start(info: ArchitectureInfo) -> str:
    return f", going on from {info.start}" if info.start else ""


def _numbers(cell: CellResult) -> list[str]:
    numbers = cell.numbers
    if numbers is None:
        what = f"failed: {cell.reason}" if cell.status == FAILED else cell.status
        return [what.replace("|", "/"), *[""] * (len(_HEADINGS) - 2)]
    return [
        bytes_text(numbers.size_bytes),
        f"{numbers.compression:.2f}",
        f"{numbers.bits_per_weight:.3f}",
        f"{numbers.decoded_bits:.3f}",
        f"{numbers.dev.token_perplexity:.2f}",
        f"{numbers.test.token_perplexity:.2f}",
        _percent(numbers.test.perplexity_ratio),
        _difference(numbers),
        _duration(numbers.training_seconds),
    ]


def _speech(report: Report, cells: Sequence[CellResult]) -> Iterator[str]:
    """A table for each set of lists, and of lattices."""
    measured = [(cell.label, cell.numbers) for cell in cells if cell.numbers is not None]
    for place, lists in enumerate(report.lists):
        rows = [(label, numbers.lists[place]) for label, numbers in measured]
        if rows:
            yield from ("", f"### {lists.title}", "", *_word_errors(rows))
    for place, lattices in enumerate(report.lattices):
        paths = [(label, numbers.lattices[place]) for label, numbers in measured]
        if paths:
            yield from ("", f"### {lattices.title}", "", *_agreements(paths))


def _word_errors(rows: Sequence[tuple[str, ListErrors]]) -> Iterator[str]:
    of_any = rows[0][1]
    half, every = of_any.held_out, of_any.every
    yield (
        f"{every.utterances:,} utterances, {every.words:,} words; weights tuned for each model on "
        f"half of the speakers, the other half ({half.words:,} words) held out. First pass "
        f"{_rate(half.first_pass_wer)} held out, {_rate(every.first_pass_wer)} in all; best "
        f"hypotheses {_rate(half.oracle_wer)} and {_rate(every.oracle_wer)}."
    )
    yield ""
    yield _row(["model", "WER % held out", "MAPSSWE p to float", "WER % all", "p", "weights"])
    yield _row(["---", "---:", "---:", "---:", "---:", "---"])
    for label, errors in rows:
        fields = [label]
        for part in (errors.held_out, errors.every):
            fields += [_rate(part.wer), f"{part.p:.2g}{' worse' if part.is_worse else ''}"]
        yield _row([*fields, errors.formula])


def _agreements(rows: Sequence[tuple[str, PathAgreement]]) -> Iterator[str]:
    one = rows[0][1]
    yield (
        f"{one.lattices} lattices without references: how far the best path is from the float "
        f"model's, in edits per word of that ({one.words:,} words)."
    )
    yield ""
    yield _row(["model", "words that differ, %", "searches ended by a budget"])
    yield _row(["---", "---:", "---:"])
    for label, agreement in rows:
        yield _row([label, _rate(agreement.differing), str(agreement.degraded)])


def _rate(share: float) -> str:
    return f"{100 * share:.2f}"


def _comparisons(report: Report) -> Iterator[str]:
    if not report.comparisons:
        yield "No pair of the same method is measured yet."
        return
    yield (
        "Each mixed-precision model beside the uniform ones of the same method that are next in "
        "bytes: the smallest of no fewer, the largest of fewer. Test, mixed minus uniform."
    )
    yield ""
    yield _row(["architecture", "mixed", "bytes", "uniform", "bytes", "nats/token", "mixed is"])
    yield _row(["---", "---", "---:", "---", "---:", "---:", "---"])
    for one in report.comparisons:
        yield _row(
            [
                one.architecture,
                one.mixed,
                bytes_text(one.mixed_bytes),
                one.uniform,
                bytes_text(one.uniform_bytes),
                f"{one.nll_difference:+.4f} ({one.low:+.4f} to {one.high:+.4f})",
                one.verdict,
            ]
        )
    yield ""
    yield from _summary(report.comparisons)


def _summary(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Whether mixed precision wins, by architecture."""
    for architecture in dict.fromkeys(one.architecture for one in comparisons):
        wins = [one.wins for one in comparisons if one.architecture == architecture]
        yield (
            f"- {architecture}: mixed precision wins {wins.count(True)} of {len(wins)} pairs "
            f"(better at no more bytes) and loses {wins.count(False)} (worse at no fewer bytes); "
            f"{wins.count(None)} decide nothing."
        )


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.2f} %"


def _difference(numbers: Numbers) -> str:
    test = numbers.test
    return (
        f"{test.nll_difference:+.4f} "
        f"({test.nll_difference_low:+.4f} to {test.nll_difference_high:+.4f})"
    )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _row(fields: Sequence[str]) -> str:
    return f"| {' | '.join(fields)} |"
