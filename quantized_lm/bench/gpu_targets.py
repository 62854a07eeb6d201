"""What was promised of an H200, each beside what was found: the worst of all it is about.

A ratio is the other system's time over ours, both with warm caches unless it says cold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from quantized_lm.bench.gpu_lists import LSTM, ListTime
from quantized_lm.bench.gpu_products import CUBLAS, INT4, PLAIN_OUTPUT
from quantized_lm.bench.gpu_report import GpuReport, Target
from quantized_lm.bench.gpu_rivals import COMPILED, EAGER, LSTM_RIVAL
from quantized_lm.bench.gpu_served import WALL

Size = tuple[int, ...]  # M, N, K
Sizes = Callable[[Size], bool]
_BODY = 3072  # the widest matrix of a body
_WIDE, _VOCABULARY = 2048, 16384
_EXPANDED, _TWO_BITS, _FOUR_BITS = "ours expanded", "ours packed 2bit", "ours packed 4bit"
_PACKED = ("ours packed 1bit", _TWO_BITS, _FOUR_BITS)
_SMALL, _LARGE = "s", "b"  # 27 M and 98 M parameters
_BATCH = 4000
_RATE = 200.0
_PARAMETERS = 90_000_000  # of a model that the service's promises are about, at least


@dataclass(frozen=True)
class _Rule:
    """One promise.

    Attributes:
        limit: least where `is_least`, else most; in `unit`.
        found: all numbers that it is about.
    """

    what: str
    limit: float
    unit: str
    found: Callable[[GpuReport], Iterable[float]]
    is_least: bool = False

    def judge(self, report: GpuReport) -> Target:
        """Asked, found, and whether it holds."""
        asked = f"{'at least' if self.is_least else 'at most'} {self.limit:g}{self.unit}"
        found = list(self.found(report))
        if not found:
            return Target(self.what, asked, None, holds=False)
        worst = min(found) if self.is_least else max(found)
        return Target(
            self.what,
            asked,
            worst,
            holds=worst >= self.limit if self.is_least else worst <= self.limit,
        )


def judge(report: GpuReport) -> tuple[Target, ...]:
    """Every promise, in order."""
    return tuple(rule.judge(report) for rule in _RULES)


def _at(*size: int) -> Sizes:
    return lambda other: other == size


def _body(rows: Callable[[int], bool]) -> Sizes:
    return lambda size: rows(size[0]) and max(size[1:]) <= _BODY


def _is_wide(size: Size) -> bool:
    rows, *weight = size
    return 1024 <= rows <= 4000 and (min(weight) >= _WIDE or weight[0] >= _VOCABULARY)


def _times(report: GpuReport, what: str, system: str, *, cold: bool = False) -> dict[Size, float]:
    return {
        one.size: one.cold_us if cold else one.warm_us
        for one in report.times
        if (one.what, one.system, one.failure) == (what, system, None)
    }


@dataclass(frozen=True)
class _Ratio:
    """Theirs over ours, of every size both were timed on."""

    ours: str
    theirs: str
    sizes: Sizes
    what: str = "product"
    cold: bool = False

    def __call__(self, report: GpuReport) -> list[float]:
        ours, theirs = (
            _times(report, self.what, system, cold=self.cold) for system in (self.ours, self.theirs)
        )
        return [
            theirs[size] / own
            for size, own in ours.items()
            if own and size in theirs and self.sizes(size)
        ]


def _share_of_cublas(report: GpuReport) -> list[float]:
    sizes = _body(lambda rows: rows <= 64)
    return [1 / one for name in _PACKED for one in _Ratio(name, CUBLAS, sizes)(report) if one]


@dataclass(frozen=True)
class _Microseconds:
    what: str
    system: str
    size: Size

    def __call__(self, report: GpuReport) -> list[float]:
        found = _times(report, self.what, self.system).get(self.size)
        return [] if found is None else [found]


def _lists(report: GpuReport, model: str, system: str, batch: int = 0) -> list[ListTime]:
    """All that begin so."""
    return [
        one
        for one in report.lists
        if (one.model, one.batch, one.failure) == (model, batch, None)
        and one.system.startswith(system)
    ]


def _best_device_ms(report: GpuReport, model: str, system: str, batch: int = 0) -> list[float]:
    """Of the faster residency."""
    found = [one.device_ms for one in _lists(report, model, system, batch)]
    return [min(known)] if (known := [ms for ms in found if ms is not None]) else []


def _wall_ratios(report: GpuReport, rival: str) -> list[float]:
    return [
        theirs.median_ms / min(one.median_ms for one in ours)
        for model in (_SMALL, _LARGE)
        if (ours := _lists(report, model, "ours"))
        for theirs in _lists(report, model, rival)
    ]


def _lstm_ratios(report: GpuReport) -> list[float]:
    ours, theirs = (_best_device_ms(report, LSTM, system) for system in ("ours", LSTM_RIVAL))
    return [their / own for own, their in zip(ours, theirs, strict=False) if own]


def _served_ms(report: GpuReport, rate: float, *, slowest: bool) -> list[float]:
    service = report.service
    if service is None or service.parameters < _PARAMETERS:
        return []
    found = [
        stage
        for one in service.times
        if one.rate == rate and not one.refused
        for stage in one.stages
        if stage.stage == WALL
    ]
    return [stage.slowest_ms if slowest else stage.median_ms for stage in found]


def _load_s(report: GpuReport) -> list[float]:
    service = report.service
    if service is None or service.parameters < _PARAMETERS:
        return []
    return [service.load_s + service.first_ms / 1e3]


_RULES = (
    _Rule(
        "expanded over cuBLAS bf16; N, K of 2048 or more and output layer, M 1024 to 4000",
        1.25, "x", _Ratio(_EXPANDED, CUBLAS, _is_wide), is_least=True,
    ),
    _Rule(
        "expanded over cuBLAS bf16; body, M 600",
        0.9, "x", _Ratio(_EXPANDED, CUBLAS, _body(lambda rows: rows == 600)), is_least=True,
    ),
    _Rule(
        "packed 2 bits over expanded; M 512 or more",
        0.75, "x", _Ratio(_TWO_BITS, _EXPANDED, lambda size: size[0] >= 512), is_least=True,
    ),
    _Rule(
        "packed 2 bits over expanded; M 128",
        0.85, "x", _Ratio(_TWO_BITS, _EXPANDED, lambda size: size[0] == 128), is_least=True,
    ),
    _Rule(
        "packed 2 bits over cuBLAS bf16; 4096 x 4096, M up to 16, cold",
        1.2, "x",
        _Ratio(
            _TWO_BITS, CUBLAS, lambda size: size[0] <= 16 and size[1:] == (4096, 4096), cold=True
        ),
        is_least=True,
    ),
    _Rule("packed; body, M up to 64: share of cuBLAS's time", 1.1, "", _share_of_cublas),
    _Rule(
        "packed 4 bits over _weight_int4pack_mm; M 16",
        1.0, "x", _Ratio(_FOUR_BITS, INT4, lambda size: size[0] == 16), is_least=True,
    ),
    _Rule(
        "packed 4 bits over _weight_int4pack_mm; M 256",
        4.0, "x", _Ratio(_FOUR_BITS, INT4, lambda size: size[0] == 256), is_least=True,
    ),
    _Rule(
        "output layer; M 600, N 16384, K 512",
        35.0, " us", _Microseconds("output", _EXPANDED, (600, 16384, 512)),
    ),
    _Rule(
        "the same over product, log_softmax, gather",
        2.0, "x", _Ratio(_EXPANDED, PLAIN_OUTPUT, _at(600, 16384, 512), "output"), is_least=True,
    ),
    _Rule(
        "output layer; M 4000, N 50000, K 768",
        600.0, " us", _Microseconds("output", _EXPANDED, (4000, 50000, 768)),
    ),
    _Rule("attention; 600 nodes", 10.0, " us", _Microseconds("attention", "ours", (600,))),
    _Rule("attention; 4000 nodes", 30.0, " us", _Microseconds("attention", "ours", (4000,))),
    _Rule(
        "a 100-best list on the device; 27 M", 0.4, " ms",
        lambda report: _best_device_ms(report, _SMALL, "ours"),
    ),
    _Rule(
        "a 100-best list on the device; 98 M", 0.8, " ms",
        lambda report: _best_device_ms(report, _LARGE, "ours"),
    ),
    _Rule(
        "a list, wall, over transformers bf16 padded, eager", 5.0, "x",
        lambda report: _wall_ratios(report, EAGER), is_least=True,
    ),
    _Rule(
        "a list, wall, over transformers bf16 padded, compiled", 2.0, "x",
        lambda report: _wall_ratios(report, COMPILED), is_least=True,
    ),
    _Rule(
        "a batch of 4000 nodes on the device; 27 M", 0.55, " ms",
        lambda report: _best_device_ms(report, _SMALL, "ours", _BATCH),
    ),
    _Rule(
        "a batch of 4000 nodes on the device; 98 M", 1.6, " ms",
        lambda report: _best_device_ms(report, _LARGE, "ours", _BATCH),
    ),
    _Rule("LSTM of 101 M, 2 bits over bf16, both in graphs", 1.8, "x", _lstm_ratios, is_least=True),
    _Rule(
        "service, 98 M, 100-best, one client: p50", 3.0, " ms",
        lambda report: _served_ms(report, 0.0, slowest=False),
    ),
    _Rule(
        "service, 98 M, 100-best, one client: p99", 6.0, " ms",
        lambda report: _served_ms(report, 0.0, slowest=True),
    ),
    _Rule(
        "service, 200 requests/s: p99", 15.0, " ms",
        lambda report: _served_ms(report, _RATE, slowest=True),
    ),
    _Rule("service, 98 M: model load to first score", 3.0, " s", _load_s),
    _Rule(
        "packed and expanded: models that differ in a bit", 0.0, "",
        lambda report: [float(not one.residencies) for one in report.same],
    ),
    _Rule(
        "alone and among strangers: models that differ in a bit", 0.0, "",
        lambda report: [float(not one.batches) for one in report.same],
    ),
    _Rule(
        "a score off the CPU engine's", 1e-3, " nats",
        lambda report: [one.difference for one in report.lists if one.difference is not None],
    ),
)  # fmt: skip
