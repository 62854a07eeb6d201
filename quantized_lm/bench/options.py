"""What a run of the benchmark does, and the small run that shows that everything works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quantized_lm.bench import gemms
from quantized_lm.bench.rounds import RoundOptions
from quantized_lm.bench.weights import PACKINGS, QUICK_SIZE, SIZES, Size

BUNDLED = "en-small"


@dataclass(frozen=True)
class BenchOptions:
    """What to run.

    Attributes:
        output: folder of everything the run makes; what costs long is kept for the next run.
        sizes: GPT-2s by name.
        bundled: whether the bundled model is timed, and memory and service measured with it.
        peers: whether other systems are installed and timed.
        files: real n-best lists for the bundled model; made-up ones without any.
        packings: keys in PACKINGS.
        lists_per_file: taken from each of the files. hypotheses: at most, of each list.
        bursts: of about a millisecond, for each peak.
    """

    output: Path
    sizes: Mapping[str, Size] = field(default_factory=lambda: dict(SIZES))
    bundled: bool = True
    peers: bool = True
    files: tuple[Path, ...] = ()
    packings: tuple[str, ...] = tuple(PACKINGS)
    rounds: RoundOptions = field(default_factory=RoundOptions)
    gemm: gemms.GemmOptions = field(default_factory=gemms.GemmOptions)
    lists_per_file: int = 12
    hypotheses: int = 100
    bursts: int = 60


def quick_options(output: Path) -> BenchOptions:
    """Everything but the peers, in less than a minute; its numbers mean nothing."""
    return BenchOptions(
        output,
        sizes={"quick": QUICK_SIZE},
        peers=False,
        packings=("4bit",),
        rounds=RoundOptions(rounds=2, processes=0, passes=1),
        gemm=gemms.QUICK,
        lists_per_file=2,
        hypotheses=20,
        bursts=2,
    )
