"""The offline commands of `secondpass`, one file each.

`COMMANDS` is all that the entry point reads: it knows neither options nor what a command does.
"""

from __future__ import annotations

from collections.abc import Callable

from quantized_lm.cli import (
    allocate,
    bench,
    compare,
    convert,
    evaluate,
    export,
    inspect,
    perplexity,
    quantize,
    reproduce,
    rescore,
    score,
    sensitivity,
    train,
    tune,
)

COMMANDS: tuple[tuple[str, Callable[..., None]], ...] = (
    ("rescore", rescore.run),
    ("tune", tune.run),
    ("evaluate", evaluate.run),
    ("compare", compare.run),
    ("score", score.run),
    ("inspect", inspect.run),
    ("convert", convert.run),
    ("train", train.run),
    ("sensitivity", sensitivity.run),
    ("allocate", allocate.run),
    ("quantize", quantize.run),
    ("export", export.run),
    ("perplexity", perplexity.run),
    ("reproduce", reproduce.run),
    ("bench", bench.run),
)
