"""A random GPT-2 as an artifact that can be served, its words those of the made-up lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from quantized_lm.artifact import ArtifactParts, write_artifact
from quantized_lm.bench.lists import Tokens
from quantized_lm.bench.weights import load_gpt2, read_packed
from quantized_lm.manifest import ModelCard
from quantized_lm.tokenizer import UNK_ID, TextRules, Tokenizer

_GOLDEN_WORDS = (2, 3, 4)


def write_random_artifact(name: str, num_heads: int, files: tuple[Path, Path], to: Path) -> None:
    """Write the folder, unless it is there.

    Args:
        files: float weights, for the sizes, and packed ones.
    """
    if (to / "manifest.json").exists():
        return
    config = load_gpt2(files[0], num_heads).config
    packed, plain = read_packed(files[1])
    card = ModelCard(
        name=name,
        architecture="gpt2",
        config=asdict(config),
        default_weights={"am_scale": 1.0, "lm_scale": 0.5, "word_bonus": 0.0},
        license="none",
        provenance={"made_by": "secondpass bench, random weights"},
    )
    words = [_word(token) for token in range(UNK_ID + 1, config.vocab_size)]
    parts = ArtifactParts(
        card=card,
        packed=packed,
        plain=plain,
        tokenizer=Tokenizer.of_words(words, rules=TextRules()),
        golden_texts=(as_text(_GOLDEN_WORDS),),
        recipe_yaml=b"",
        coding="",
    )
    write_artifact(to, parts)


def as_text(tokens: Sequence[int]) -> str:
    """What such a model reads as these tokens."""
    return " ".join(map(_word, tokens))


def as_texts(hypotheses: Sequence[Tokens]) -> tuple[str, ...]:
    """The same of a list."""
    return tuple(map(as_text, hypotheses))


def _word(token: int) -> str:
    return f"w{token}"
