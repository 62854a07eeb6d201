"""Vocabularies of a corpus: BPE pieces, frequent words, those of a symbol table or of a model."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from quantized_lm.artifact import model_folder
from quantized_lm.errors import DataError, RecipeError
from quantized_lm.manifest import read_verified
from quantized_lm.pipeline.recipe import CorpusRecipe
from quantized_lm.pipeline.text_files import read_lines
from quantized_lm.tokenizer import BOUNDARY, UNK, Tokenizer

# Of a symbol table: no words, or another spelling of the two symbols.
_NO_WORD = re.compile(r"<eps>|#\d+|<s>|</s>|<unk>", re.IGNORECASE)


def make_tokenizer(recipe: CorpusRecipe, data: Path) -> Tokenizer:
    """The tokenizer that a recipe asks for.

    Raises:
        RecipeError: no such kind of vocabulary.
        DataError: a file is unreadable, or there are fewer words than vocab_size asks for.
    """
    if recipe.vocabulary not in VOCABULARIES:
        known = ", ".join(VOCABULARIES)
        raise RecipeError(f"corpus: vocabulary is {recipe.vocabulary!r}; need one of {known}")
    files = vocabulary_files(recipe, data)
    tokenizer = VOCABULARIES[recipe.vocabulary](recipe, files)
    if tokenizer.vocab_size != recipe.vocab_size:
        raise DataError(
            f"{files[0]}: the vocabulary has {tokenizer.vocab_size} tokens; "
            f"vocab_size is {recipe.vocab_size}"
        )
    return tokenizer


def vocabulary_files(recipe: CorpusRecipe, data: Path) -> list[Path]:
    """What the vocabulary is made from.

    Raises:
        ArtifactError: it is to be a model's, and there is no such model.
    """
    if recipe.vocabulary == "model":
        return [model_folder(name) / "tokenizer.json" for name in recipe.vocab_from]
    return [data / name for name in recipe.vocab_from]


def _pieces(recipe: CorpusRecipe, files: list[Path]) -> Tokenizer:
    return Tokenizer.train(_text(files), vocab_size=recipe.vocab_size, rules=recipe.text)


def _frequent_words(recipe: CorpusRecipe, files: list[Path]) -> Tokenizer:
    """The most frequent first; of equal ones, the first met."""
    count = Counter(word for line in _text(files) for word in recipe.text.said(line))
    for symbol in (BOUNDARY, UNK):
        count.pop(symbol, None)
    words = [word for word, _ in count.most_common(recipe.vocab_size - 2)]
    return Tokenizer.of_words(words, rules=recipe.text)


def _symbol_table(recipe: CorpusRecipe, files: list[Path]) -> Tokenizer:
    """Words of lines "WORD ID", by their order; <eps>, #0, <s>, </s> and <unk> are left out.

    Raises:
        DataError: a line is something else, or most words are none that the recipe's text can have.
    """
    words = []
    for path in files:
        for number, line in enumerate(read_lines(path), start=1):
            fields = line.split()
            if len(fields) != 2 or not fields[1].isdecimal():
                raise DataError(f"{path}, line {number}: got {line.strip()!r}; need WORD ID")
            if not _NO_WORD.fullmatch(fields[0]):
                words.append(fields[0])
    strange = [word for word in words if recipe.text.words(word) != [word]]
    if len(strange) > len(words) / 2:
        read = " ".join(recipe.text.words(strange[0]))
        raise DataError(
            f"{files[0]}: {len(strange)} of {len(words)} words never occur in text as the recipe "
            f"reads it, such as {strange[0]!r}, which is {read!r} there; set `text` of `corpus`, "
            "such as {case: upper, strip_punctuation: false}"
        )
    return Tokenizer.of_words(words, rules=recipe.text)


def _of_model(recipe: CorpusRecipe, files: list[Path]) -> Tokenizer:
    content = read_verified(files[0].parent, files[0].name)
    return Tokenizer.from_json(content, recipe.text, where=str(files[0]))


def _text(files: list[Path]) -> Iterator[str]:
    return itertools.chain.from_iterable(map(read_lines, files))


VOCABULARIES: Mapping[str, Callable[[CorpusRecipe, list[Path]], Tokenizer]] = MappingProxyType(
    {"bpe": _pieces, "words": _frequent_words, "kaldi": _symbol_table, "model": _of_model}
)
