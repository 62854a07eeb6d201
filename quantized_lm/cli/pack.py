"""`secondpass pack`: a pretrained GPT-2 to an artifact folder that can be served."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from quantized_lm.cli.console import command, note, print_json
from quantized_lm.cli.devices import BackendOption
from quantized_lm.cli.export import LmScaleOption, WordBonusOption
from quantized_lm.cli.perplexity import print_report
from quantized_lm.cli.score import read_texts
from quantized_lm.ops import AUTO
from quantized_lm.pipeline.export import GOLDEN_TEXTS
from quantized_lm.pipeline.gpt2_folder import read_gpt2
from quantized_lm.pipeline.pack import Packing, pack, packing_cost, require_free, sample_of
from quantized_lm.quant.formats import FORMATS
from quantized_lm.tokenizer import TextRules

_FORMATS = ", ".join(FORMATS)
_MOST_TEXTS = 500  # the float model takes its time


@command
def run(  # noqa: PLR0913 - each is an option of the command
    source: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="What save_pretrained of transformers wrote."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Model folder to write.")],
    *,
    body: Annotated[
        str, typer.Option("--format", help=f"Of the matrices: {_FORMATS}; or 4bit:normal.")
    ] = "8bit",
    embedding: Annotated[
        str | None,
        typer.Option("--embedding", help="Of the embedding and output layer. [default: --format]"),
    ] = None,
    group_size: Annotated[
        int | None, typer.Option(help="Columns that share a scale. [default: a whole row]")
    ] = None,
    case: Annotated[
        str, typer.Option(help="What is done to texts before they are scored: lower, upper, keep.")
    ] = "lower",
    punctuation: Annotated[
        bool, typer.Option("--punctuation", help="Score it, instead of leaving it out.")
    ] = False,
    texts: Annotated[
        Path | None,
        typer.Option(help=f"What to compare on, a text a line; the first {_MOST_TEXTS}."),
    ] = None,
    lm_scale: LmScaleOption = 0.5,
    word_bonus: WordBonusOption = 0.0,
    license_name: Annotated[
        str, typer.Option("--license", help="Of the weights, kept in the folder.")
    ] = "not stated",
    backend: BackendOption = AUTO,
) -> None:
    """Pack a GPT-2 of the transformers library, and show what rounding its weights cost.

    FOLDER holds config.json, model.safetensors and the vocabulary. For fewer bits than rounding
    alone allows, name OUT as `start` of a recipe and let `secondpass quantize` train them on your
    text.
    The last line of output is one JSON object.

    secondpass pack distilgpt2/ models/distilgpt2 --texts transcripts.txt

    secondpass pack gpt2/ models/gpt2-4 --format 4bit --group-size 64 --embedding 8bit
    """
    rules = TextRules(case=case, strip_punctuation=not punctuation)
    packing = Packing(body, embedding or body, group_size)
    require_free(out)
    compared = GOLDEN_TEXTS if texts is None else tuple(islice(read_texts(texts), _MOST_TEXTS))
    given = read_gpt2(source, rules)
    sample = sample_of(given, compared)
    weights = {"am_scale": 1.0, "lm_scale": lm_scale, "word_bonus": word_bonus}
    manifest = pack(
        given,
        packing,
        out,
        source=source.resolve().name,
        license_name=license_name,
        default_weights=weights,
    )
    report = packing_cost(given, out, sample, backend=backend)
    print_report(report, "float")
    note(
        f"{out} is written: {manifest.size_bytes / 1e6:.1f} MB, "
        f"{manifest.bits_per_weight:.2f} bits per weight; try: secondpass serve --model {out}"
    )
    print_json({"model": manifest.name, "size_bytes": manifest.size_bytes, **asdict(report)})
