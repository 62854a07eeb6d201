"""`secondpass score`: how likely the LM finds a text, per token if asked, and perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Annotated

import typer

from quantized_lm.artifact import DEFAULT_MODEL, LoadedModel, load_artifact, model_folder
from quantized_lm.cli.console import command, print_json
from quantized_lm.cli.devices import DeviceOption, ThreadsOption
from quantized_lm.errors import DataError
from quantized_lm.files import reason
from quantized_lm.nbest import UNREADABLE, open_read
from quantized_lm.ops import AUTO
from quantized_lm.scoring import ScoreRequest, TextScore, score_lists

_BATCH_TEXTS = 32


@dataclass
class Totals:
    """Sums over all texts scored so far."""

    log_prob: float = 0.0
    texts: int = 0
    words: int = 0
    tokens: int = 0
    oov: int = 0

    def add(self, score: TextScore) -> None:
        """Count one text."""
        self.log_prob += score.log_prob
        self.texts += 1
        self.words += len(score.words)
        self.tokens += score.num_tokens
        self.oov += len(score.oov)


@command
def run(  # noqa: PLR0913 - each is an option of the command
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts to score.")
    ] = None,
    *,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Or a file of them, one a line; .gz too.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help=f"Model folder. [default: {DEFAULT_MODEL}]"),
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Show every token's score.")] = False,
    final: Annotated[
        bool, typer.Option("--final/--partial", help="Whether texts end, so that </s> counts.")
    ] = True,
    device: DeviceOption = AUTO,
    threads: ThreadsOption = 0,
) -> None:
    """Natural-log probability of each text, </s> included, and perplexity over all of them.

    Perplexity is exp(-log P / n). Per word, n counts the words and one </s> per text; per token,
    the tokens and one </s> per text. With --partial no </s> is scored and none is counted.
    The last line of output is one JSON object.

    secondpass score "he hoped there would be stew for dinner"

    secondpass score --tokens "recognize speech" "wreck a nice beach"

    secondpass score --file dev.txt.gz --model models/en-small
    """
    if bool(texts) == (file is not None):
        raise DataError("got no text, or both texts and --file; give one of them")
    loaded = load_artifact(model_folder(model), device=device, threads=threads or None)
    totals = Totals()
    lines = iter(texts or ()) if file is None else read_texts(file)
    for text, score in _scores(lines, loaded, is_final=final):
        totals.add(score)
        typer.echo(f"{score.log_prob:.4f}\t{text}")
        if tokens:
            for token_id, log_prob in zip(score.token_ids, score.token_log_probs, strict=True):
                typer.echo(f"  {log_prob:9.4f}  {loaded.tokenizer.piece(token_id)}")
        if score.oov:
            typer.echo(f"  unknown: {' '.join(score.oov)}")
    if totals.texts == 0:
        raise DataError(f"{file}: no texts; need at least one line")
    ends = totals.texts if final else 0
    print_json(
        {
            "model": loaded.name,
            "revision": loaded.revision,
            "log_prob": totals.log_prob,
            "texts": totals.texts,
            "words": totals.words,
            "tokens": totals.tokens,
            "oov_words": totals.oov,
            "ends_counted": ends,
            "perplexity_per_word": _perplexity(totals.log_prob, totals.words + ends),
            "perplexity_per_token": _perplexity(totals.log_prob, totals.tokens + ends),
        }
    )


def _scores(
    texts: Iterator[str], loaded: LoadedModel, *, is_final: bool
) -> Iterator[tuple[str, TextScore]]:
    while batch := list(islice(texts, _BATCH_TEXTS)):
        requests = [ScoreRequest((text,), final=is_final) for text in batch]
        lists = score_lists(requests, loaded)
        yield from zip(batch, chain.from_iterable(one.scores for one in lists), strict=True)


def read_texts(path: Path) -> Iterator[str]:
    """The lines of a file, plain or gzip, that are not blank.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with open_read(path) as lines:
            yield from (line.strip() for line in _not_blank(lines))
    except UNREADABLE as error:
        raise DataError(
            f"{path}: cannot be read ({reason(error)}); need text, plain or gzip"
        ) from None


def _not_blank(lines: Iterable[str]) -> Iterator[str]:
    return (line for line in lines if line.strip())


def _perplexity(log_prob: float, count: int) -> float | None:
    """None where nothing was counted or the number has no float64."""
    try:
        return math.exp(-log_prob / count)
    except (OverflowError, ZeroDivisionError):
        return None
