"""Corpus stage: text files -> a vocabulary and token shards on disk.

A shard is a flat little-endian uint16 file: each line's tokens, then the boundary symbol. Knows
nothing of models.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import DataError
from quantized_lm.files import write_atomic
from quantized_lm.pipeline.progress import track
from quantized_lm.pipeline.recipe import CorpusRecipe
from quantized_lm.pipeline.text_files import read_lines
from quantized_lm.pipeline.vocabulary import make_tokenizer, vocabulary_files
from quantized_lm.records import content_key
from quantized_lm.tokenizer import BOUNDARY_ID, Tokenizer

SPLITS = ("train", "dev", "test")
_CHUNK_LINES = 20_000


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus folder.

    Attributes:
        words: by split. key: of the recipe and of every byte of its text.
    """

    folder: Path
    tokenizer: Tokenizer
    words: dict[str, int]
    key: str

    def tokens(self, split: str) -> NDArray[np.uint16]:
        """(n,) uint16 tokens of a split, memory-mapped; every line ends with the boundary."""
        return np.memmap(self.folder / f"{split}.bin", dtype="<u2", mode="r")


def prepare_corpus(recipe: CorpusRecipe, *, data: Path, out: Path) -> Corpus:
    """Tokenize the recipe's text once; a later call with the same recipe and text only opens it.

    Raises:
        DataError: a text file is missing or not gzip text.
    """
    key = corpus_key(recipe, data=data)
    done = out / "corpus.json"
    names = {"key": key, "recipe": content_key(recipe)}
    if not names.items() <= _state(done).items():
        out.mkdir(parents=True, exist_ok=True)
        done.unlink(missing_ok=True)
        tokenizer = make_tokenizer(recipe, data)
        write_atomic(out / "tokenizer.json", tokenizer.to_json())
        words = _write_shards(recipe, data, out, tokenizer)
        write_atomic(done, json.dumps({**names, "words": words}).encode())
    return open_corpus(recipe, out)


def open_corpus(recipe: CorpusRecipe, folder: Path) -> Corpus:
    """Open what `prepare_corpus` wrote.

    Raises:
        DataError: nothing complete is there, or it was made by another recipe.
    """
    state = _state(folder / "corpus.json")
    if not state:
        raise DataError(f"{folder} holds no prepared corpus; run `secondpass train` first")
    if state.get("recipe") != content_key(recipe):  # earlier versions did not say
        raise DataError(
            f"{folder} was prepared by a recipe with another `corpus`; run `secondpass train` with "
            "this one, or name the folder of its run with --run"
        )
    vocabulary = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_json(vocabulary.read_bytes(), recipe.text, where=str(vocabulary))
    return Corpus(folder, tokenizer, state["words"], state["key"])


def corpus_key(recipe: CorpusRecipe, *, data: Path) -> str:
    """Hash of the recipe and of every source file's bytes.

    Raises:
        DataError: a file cannot be read.
    """
    digest = hashlib.sha256(content_key(recipe).encode())
    text = {data / name for name in (*recipe.train, recipe.dev, recipe.test) if name}
    for path in sorted({*text, *vocabulary_files(recipe, data)}):
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error}); check --data") from None
    return digest.hexdigest()


def _state(path: Path) -> dict[str, Any]:
    """What `prepare_corpus` wrote last; empty if that is not there or damaged."""
    try:
        state = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _write_shards(
    recipe: CorpusRecipe, data: Path, out: Path, tokenizer: Tokenizer
) -> dict[str, int]:
    """Encode every source into the split files; returns words per split."""
    words = dict.fromkeys(SPLITS, 0)
    try:
        with ExitStack() as files:
            paths = {split: out / f"{split}.bin" for split in SPLITS}
            handles = {name: files.enter_context(path.open("wb")) for name, path in paths.items()}
            for split, name, part in _parts(recipe, data):
                for chunk in track(_chunks(part, _CHUNK_LINES), f"tokenize {name} ({split})"):
                    encoded, count = _encode_chunk(chunk, tokenizer)
                    words[split] += count
                    handles[split].write(encoded.tobytes())
    except OSError as error:
        error.filename = error.filename or str(out)  # a full disk does not say whose write failed
        raise
    for split, count in words.items():
        if not count:
            raise DataError(f"{data}: the recipe's files hold no words for {split}; check them")
    return words


def _encode_chunk(lines: list[str], tokenizer: Tokenizer) -> tuple[NDArray[np.uint16], int]:
    ids: list[int] = []
    words = 0
    for line in lines:
        encoding = tokenizer.encode(line)
        if encoding.ids:
            words += len(encoding.words)
            ids.extend(encoding.ids)
            ids.append(BOUNDARY_ID)
    return np.asarray(ids, dtype="<u2"), words


def _parts(recipe: CorpusRecipe, data: Path) -> Iterator[tuple[str, str, Iterable[str]]]:
    """Split, file name and lines of everything that becomes a shard.

    A file that stands in `train` more than once counts so often there, and is held out from once.
    """
    is_held_out = False
    for name in recipe.train:
        if name != recipe.held_out:
            yield "train", name, read_lines(data / name)
            continue
        for split, lines in _held_out_parts(recipe, data / name):
            if split == "train" or not is_held_out:
                yield split, name, lines
        is_held_out = True
    for split, name in (("dev", recipe.dev), ("test", recipe.test)):
        if name:
            yield split, name, read_lines(data / name)


def _held_out_parts(recipe: CorpusRecipe, path: Path) -> Iterator[tuple[str, list[str]]]:
    whole = list(read_lines(path))
    test = len(whole) - recipe.test_lines
    dev = test - recipe.dev_lines
    if dev <= 0:
        raise DataError(f"{path}: {len(whole)} lines are too few to hold out dev and test from")
    yield "train", whole[:dev]
    yield "dev", whole[dev:test]
    yield "test", whole[test:]


def _chunks(lines: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(lines)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
