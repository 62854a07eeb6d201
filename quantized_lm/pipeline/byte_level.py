"""Vocabularies of byte-level BPE, such as GPT-2's, as this package numbers its tokens.

Here the boundary symbol has id 0 and the unknown token id 1. There one special symbol stands
between texts, <|endoftext|>, and nothing is unknown. For the unknown token serves one that no text
can spell: "<unk>" where there is one, else a byte that UTF-8 never holds. So tokens change places
and none is added: another row of the embedding would take probability from all others.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import DataError
from quantized_lm.files import reason
from quantized_lm.tokenizer import BOUNDARY, BOUNDARY_ID, UNK, UNK_ID, TextRules, Tokenizer

# As the byte-level alphabet writes them: 0xC0, 0xC1, and 0xF5 to 0xFF.
_NEVER_IN_UTF8 = ("\u00c0", "\u00c1", *map(chr, range(0xF5, 0x100)))
# Each word with the space before it, by GPT-2's own rules for what may stand in one token.
_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": True,
    "trim_offsets": True,
    "use_regex": True,
}
_VERSION = "#version"
_NEED = "need GPT-2's byte-level BPE"


@dataclass(frozen=True)
class Renumbered:
    """A vocabulary and where its tokens came from.

    Attributes:
        tokenizer: with the boundary at 0 and the unknown token at 1, the others in their old order.
        order: (V,) int64, the old id of each new one: the rows of an embedding in their new order.
    """

    tokenizer: Tokenizer
    order: NDArray[np.int64]


@dataclass(frozen=True)
class _Given:
    """What of a vocabulary decides tokens: each token's id, and the merges in their order."""

    ids: dict[str, int]
    merges: list[Any]


def read_byte_level(
    folder: Path, *, boundary_id: int, vocab_size: int, rules: TextRules
) -> Renumbered:
    """Read tokenizer.json, or vocab.json and merges.txt, of the transformers library.

    Args:
        boundary_id: of the symbol that ends texts, and begins them.
        vocab_size: rows of the embedding. One without a token, as where an embedding was padded,
            gets one that no text can spell.
        rules: for the texts to score.

    Raises:
        DataError: they are missing, no byte-level BPE, or do not fit the numbers given.
    """
    path = folder / "tokenizer.json"
    given = _of_tokenizer(path) if path.exists() else _of_merges(folder)
    where = str(folder)
    tokens = _by_id(given.ids, vocab_size, where)
    if boundary_id not in tokens:
        raise DataError(
            f"{where}: no token has id {boundary_id}, which config.json has as eos_token_id"
        )
    boundary = tokens[boundary_id]
    if boundary != BOUNDARY and BOUNDARY in given.ids:
        raise DataError(f"{where}: has {BOUNDARY} beside {boundary}, which ends texts; {_NEED}")
    unknown = _spare(given, boundary, where)
    first = [boundary_id, given.ids[unknown]]
    order = np.asarray(first + [old for old in range(vocab_size) if old not in first], np.int64)
    new_ids = np.argsort(order)
    vocabulary = {
        tokens.get(old, f"<unused {old}>"): int(new_ids[old]) for old in range(vocab_size)
    }
    del vocabulary[boundary], vocabulary[unknown]
    vocabulary |= {BOUNDARY: BOUNDARY_ID, UNK: UNK_ID}
    content = json.dumps(_description(vocabulary, given.merges)).encode()
    return Renumbered(Tokenizer.from_json(content, rules, where=where), order)


def _of_tokenizer(path: Path) -> _Given:
    description = _mapping(_parsed(path), str(path))
    model = _mapping(description.get("model"), f"{path}: model")
    splitting = _mapping(description.get("pre_tokenizer"), f"{path}: pre_tokenizer")
    for field, got, needed in (
        ("model: type", model.get("type", "BPE"), "BPE"),
        ("pre_tokenizer: type", splitting.get("type"), "ByteLevel"),
        ("pre_tokenizer: use_regex", splitting.get("use_regex", True), True),
        ("normalizer", description.get("normalizer"), None),
        ("model: continuing_subword_prefix", model.get("continuing_subword_prefix") or None, None),
        ("model: end_of_word_suffix", model.get("end_of_word_suffix") or None, None),
    ):
        if got != needed:
            raise DataError(f"{path}: {field} is {got!r}; {_NEED}, with {needed!r}")
    ids = dict(_mapping(model.get("vocab"), f"{path}: model: vocab"))
    for added in description.get("added_tokens") or ():
        token = _mapping(added, f"{path}: added_tokens")
        ids[token.get("content", "")] = token.get("id")
    return _Given(ids, _sequence(model.get("merges"), f"{path}: model: merges"))


def _of_merges(folder: Path) -> _Given:
    path = folder / "merges.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({reason(error)}); need tokenizer.json, or vocab.json and "
            "merges.txt"
        ) from None
    merges = [line for line in lines if line and not line.startswith(_VERSION)]
    vocabulary = folder / "vocab.json"
    return _Given(dict(_mapping(_parsed(vocabulary), str(vocabulary))), merges)


def _parsed(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({reason(error)}); {_NEED}") from None


def _mapping(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: is no mapping; {_NEED}")
    return value


def _sequence(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{where}: is no list; {_NEED}")
    return value


def _by_id(ids: dict[str, Any], vocab_size: int, where: str) -> dict[int, str]:
    """Each id's token, if each token has a row of its own."""
    tokens: dict[int, str] = {}
    for token, number in ids.items():
        if not isinstance(number, int) or not 0 <= number < vocab_size:
            raise DataError(f"{where}: {token!r} has id {number}; need 0 to {vocab_size - 1}")
        if number in tokens:
            raise DataError(f"{where}: {tokens[number]!r} and {token!r} both have id {number}")
        tokens[number] = token
    return tokens


def _spare(given: _Given, boundary: str, where: str) -> str:
    """A token that no text can spell."""
    merged = set("".join("".join(merge) for merge in given.merges))
    for token in (UNK, *_NEVER_IN_UTF8):
        if token in given.ids and token != boundary and (token == UNK or token not in merged):
            return token
    raise DataError(f"{where}: every token can be part of a text; need one for what is unknown")


def _description(vocabulary: dict[str, int], merges: list[Any]) -> dict[str, Any]:
    """A tokenizer.json."""
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": UNK,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": vocabulary,
        "merges": merges,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": _BYTE_LEVEL,
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": model,
    }
