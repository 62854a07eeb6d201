"""Text to token ids and back: normalization, BPE and what counts as out of vocabulary.

Knows nothing of scores or models. BPE itself is the `tokenizers` library's; words are encoded one
by one, so that a word's pieces never depend on its neighbors and prefixes of texts stay prefixes
of token sequences.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer as BpeTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from quantized_lm.errors import DataError

BOUNDARY_ID = 0  # one symbol is both <s> and </s>, as in Kaldi: a text starts where the last ended
UNK_ID = 1
BOUNDARY = "</s>"
UNK = "<unk>"
_APOSTROPHES = re.compile("[\u2018\u2019\u02bc\u00b4`]")
_PUNCTUATION = re.compile(r"[^\w\s']|_")
_MEMO_WORDS = 1 << 16


@dataclass(frozen=True)
class TextRules:
    """How a text is changed before it is scored; the text sent back is always the original.

    Attributes:
        case: "lower", "upper" or "keep".
        strip_punctuation: replace everything but letters, digits and apostrophes by a space.
    """

    case: str = "lower"
    strip_punctuation: bool = True

    def __post_init__(self) -> None:
        if self.case not in {"lower", "upper", "keep"}:
            raise DataError(f"text case is {self.case!r}; need 'lower', 'upper' or 'keep'")

    def words(self, text: str) -> list[str]:
        """Words of the normalized text."""
        text = _APOSTROPHES.sub("'", text)
        if self.case != "keep":
            text = text.lower() if self.case == "lower" else text.upper()
        if self.strip_punctuation:
            text = _PUNCTUATION.sub(" ", text)
        return text.split()


@dataclass(frozen=True)
class Encoding:
    """One text as tokens.

    Attributes:
        ids: token ids, without the boundary symbol.
        word_starts: for each word, the position in `ids` of its first token.
        words: the normalized words.
        oov: the words that hold an unknown token, in order, repeats kept.
    """

    ids: tuple[int, ...]
    word_starts: tuple[int, ...]
    words: tuple[str, ...]
    oov: tuple[str, ...]


class Tokenizer:
    """A BPE vocabulary plus the text rules of its model."""

    def __init__(self, bpe: BpeTokenizer, rules: TextRules) -> None:
        self.bpe = bpe
        self.rules = rules
        self.encode_word = functools.lru_cache(maxsize=_MEMO_WORDS)(self._encode_word)

    @classmethod
    def from_json(cls, content: bytes, rules: TextRules, *, where: str) -> Tokenizer:
        """Read the content of a `tokenizer.json` of the tokenizers library.

        Raises:
            DataError: it is not one, or lacks the boundary or unknown symbol at its id.
        """
        try:
            bpe = BpeTokenizer.from_buffer(content)
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception
            raise DataError(f"{where}: not a tokenizer.json ({error}); make it again") from None
        for symbol, expected in ((BOUNDARY, BOUNDARY_ID), (UNK, UNK_ID)):
            if bpe.token_to_id(symbol) != expected:
                raise DataError(
                    f"{where}: {symbol} has id {bpe.token_to_id(symbol)}; need {expected}"
                )
        return cls(bpe, rules)

    def to_json(self) -> bytes:
        """What `from_json` reads."""
        return str(self.bpe.to_str(pretty=False)).encode()

    @classmethod
    def train(cls, lines: Iterator[str], *, vocab_size: int, rules: TextRules) -> Tokenizer:
        """Learn `vocab_size` pieces from normalized lines; same lines, same vocabulary."""
        bpe = BpeTokenizer(models.BPE(unk_token=UNK))
        bpe.pre_tokenizer = pre_tokenizers.Metaspace()
        bpe.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[BOUNDARY, UNK], show_progress=False
        )
        bpe.train_from_iterator((" ".join(rules.words(line)) for line in lines), trainer)
        return cls(bpe, rules)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, the two symbols included."""
        return int(self.bpe.get_vocab_size())

    def encode(self, text: str) -> Encoding:
        """Tokens of one text. An empty or all-punctuation text has none."""
        words = self.rules.words(text)
        ids: list[int] = []
        starts: list[int] = []
        oov: list[str] = []
        for word in words:
            pieces = self.encode_word(word)
            starts.append(len(ids))
            ids.extend(pieces)
            if UNK_ID in pieces:
                oov.append(word)
        return Encoding(tuple(ids), tuple(starts), tuple(words), tuple(oov))

    def piece(self, token_id: int) -> str:
        """Spelling of one token; a leading U+2581 stands for the space before a word."""
        return str(self.bpe.id_to_token(token_id))

    def _encode_word(self, word: str) -> tuple[int, ...]:
        return tuple(self.bpe.encode(word, add_special_tokens=False).ids)
