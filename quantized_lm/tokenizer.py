"""Text to token ids and back: normalization, vocabulary and what counts as out of it.

Knows nothing of scores or models. The pieces are BPE's or whole words, by the `tokenizers` library.
Words are encoded one by one, so that a word's pieces never depend on its neighbors and prefixes of
texts stay prefixes of token sequences. For the same reason what stands between two spaces of a text
can be looked up as a whole: no rule of `TextRules` sees past a space. Symbols that decoders write
among words, such as [noise] or </s>, are left out of texts and of lattices by one rule.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as VocabularyTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from quantized_lm import _tokens
from quantized_lm.errors import DataError

BOUNDARY_ID = 0  # one symbol is both <s> and </s>, as in Kaldi: a text starts where the last ended
UNK_ID = 1
BOUNDARY = "</s>"
UNK = "<unk>"
_APOSTROPHES = re.compile("[\u2018\u2019\u02bc\u00b4`]")
_ASCII_PUNCTUATION = re.compile(r"[^\w\s']|_")
_JOINERS = "\u200c\u200d"  # part of a word's spelling, in Persian and in scripts of India
_WITH_COMBINING = (range(0x300, 0x20000), range(0xE0100, 0xE0200))  # where Unicode has any
# Kaldi's, k2's, HTK's and PocketSphinx's: <s>, </s>, <eps>, <sil>, !NULL, !SENT_START, [noise],
# ++NOISE++, SIL. A word outside the vocabulary is one all the same.
_NO_WORD = re.compile(
    r"<(?!unk>)[^<>]*>|![A-Z_]+|\[[^\[\]]*\]|\+\+.*\+\+|#\d+|sil", re.IGNORECASE | re.ASCII
)
_SILENCE = "sil"
_MARKS = re.compile(r"[<!\[+#]")  # one is in all others of them, and in few texts
_MEMO_WORDS = 1 << 16
_MEMO_CHARS = 64  # a longer word or chunk is none, and would fill memory under its own name


def is_word(symbol: str) -> bool:
    """Whether a decoder's symbol is something that was said."""
    return bool(symbol) and not _NO_WORD.fullmatch(symbol)


@dataclass(frozen=True)
class TextRules:
    """How a text is changed before it is scored; the text sent back is always the original.

    Attributes:
        case: "lower", "upper" or "keep".
        strip_punctuation: replace everything but letters with what combines with them (vowel signs,
            accents, joiners between letters), digits and apostrophes by a space.

    Characters with several spellings, such as letters with accents, are read composed (NFC).
    """

    case: str = "lower"
    strip_punctuation: bool = True

    def __post_init__(self) -> None:
        if self.case not in {"lower", "upper", "keep"}:
            raise DataError(f"text case is {self.case!r}; need 'lower', 'upper' or 'keep'")

    def words(self, text: str) -> list[str]:
        """Words of the normalized text."""
        if self.case != "keep":
            text = text.lower() if self.case == "lower" else text.upper()
        is_ascii = text.isascii()
        if not is_ascii:  # composed last, as a change of case may take characters apart
            text = unicodedata.normalize("NFC", text)
        text = _APOSTROPHES.sub("'", text)
        if self.strip_punctuation:
            text = (_ASCII_PUNCTUATION if is_ascii else _punctuation()).sub(" ", text)
        return text.split()

    def said(self, text: str) -> list[str]:
        """What was said: the normalized words without pauses, noises and sentence marks.

        The symbol of an unknown word, <unk>, is a word that no rule changes.
        """
        if _MARKS.search(text) is None and _SILENCE not in text.lower():
            return self.words(text)
        symbols = filter(is_word, text.split())
        words = ([UNK] if one.lower() == UNK else self.words(one) for one in symbols)
        return list(itertools.chain.from_iterable(words))


@dataclass(frozen=True)
class Encoding:
    """One text as tokens.

    Attributes:
        ids: token ids, without the boundary symbol.
        word_starts: for each word, the position in `ids` of its first token.
        words: the normalized words; what is no word is not among them.
        oov: the words that hold an unknown token, in order, repeats kept.
    """

    ids: tuple[int, ...]
    word_starts: tuple[int, ...]
    words: tuple[str, ...]
    oov: tuple[str, ...]


@dataclass(frozen=True)
class EncodedTexts:
    """H texts as tokens, text after text.

    Attributes:
        ids: (T + H,) int32, token ids of all texts, each text ended by the boundary symbol.
        num_tokens, num_words: (H,) int64, of each text, the boundary symbol not counted.
        num_oov: (H,) int64, words of each text that hold an unknown token.
    """

    ids: NDArray[np.int32]
    num_tokens: NDArray[np.int64]
    num_words: NDArray[np.int64]
    num_oov: NDArray[np.int64]


class Tokenizer:
    """A vocabulary plus the text rules of its model."""

    def __init__(self, vocabulary: VocabularyTokenizer, rules: TextRules) -> None:
        self.vocabulary = vocabulary
        self.rules = rules
        self._memo = functools.lru_cache(maxsize=_MEMO_WORDS)(self._encode_word)
        self._encoder = _tokens.Encoder(_MEMO_WORDS, _MEMO_CHARS, UNK_ID, BOUNDARY_ID)
        self._piece = functools.lru_cache(maxsize=_MEMO_WORDS)(vocabulary.id_to_token)

    @classmethod
    def from_json(cls, content: bytes, rules: TextRules, *, where: str) -> Tokenizer:
        """Read the content of a `tokenizer.json` of the tokenizers library.

        Padding and truncation are left out: how long a text may be is not the vocabulary's matter.
        So is BPE's dropout, which is for training: a text has one score.

        Raises:
            DataError: it is not one, lacks the boundary or unknown symbol at its id, or has
                something else for what it does not know.
        """
        with _naming_fault(f"{where}: not a tokenizer.json", "make it again"):
            vocabulary = VocabularyTokenizer.from_buffer(content)
        vocabulary.no_padding()
        vocabulary.no_truncation()
        if isinstance(vocabulary.model, models.BPE):
            vocabulary.model.dropout = None
        for symbol, expected in ((BOUNDARY, BOUNDARY_ID), (UNK, UNK_ID)):
            if vocabulary.token_to_id(symbol) != expected:
                raise DataError(
                    f"{where}: {symbol} has id {vocabulary.token_to_id(symbol)}; need {expected}"
                )
        _require_unknown(vocabulary, where)
        return cls(vocabulary, rules)

    def to_json(self) -> bytes:
        """What `from_json` reads."""
        return str(self.vocabulary.to_str(pretty=False)).encode()

    @classmethod
    def train(cls, lines: Iterator[str], *, vocab_size: int, rules: TextRules) -> Tokenizer:
        """Learn `vocab_size` pieces from normalized lines; same lines, same vocabulary."""
        bpe = VocabularyTokenizer(models.BPE(unk_token=UNK))
        bpe.pre_tokenizer = pre_tokenizers.Metaspace()
        bpe.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[BOUNDARY, UNK], show_progress=False
        )
        known = ((word for word in rules.said(line) if word != UNK) for line in lines)
        bpe.train_from_iterator(map(" ".join, known), trainer)
        return cls(bpe, rules)

    @classmethod
    def of_words(cls, words: Iterable[str], *, rules: TextRules) -> Tokenizer:
        """A vocabulary of whole words, numbered in the order given after the two symbols.

        Raises:
            DataError: a word is given twice.
        """
        ids = {BOUNDARY: BOUNDARY_ID, UNK: UNK_ID}
        for word in words:
            if word in ids:
                raise DataError(f"the vocabulary holds {word!r} twice; need each word once")
            ids[word] = len(ids)
        return cls(VocabularyTokenizer(models.WordLevel(ids, unk_token=UNK)), rules)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, the two symbols included."""
        return int(self.vocabulary.get_vocab_size())

    @property
    def largest_id(self) -> int:
        """Of all tokens, those included that were added to the vocabulary."""
        return max(self.vocabulary.get_vocab().values())

    def words(self, text: str) -> list[str]:
        """`TextRules.said` by the model's rules."""
        return self.rules.said(text)

    def encode(self, text: str) -> Encoding:
        """Tokens of one text. An empty or all-punctuation text has none."""
        words = self.words(text)
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

    def encode_word(self, word: str) -> tuple[int, ...]:
        """Tokens of one normalized word: at least one, if only the unknown one."""
        return self._memo(word) if len(word) <= _MEMO_CHARS else self._encode_word(word)

    def context_ids(self, texts: Sequence[str], *, room: int) -> list[int]:
        """The newest tokens of earlier texts that fit, each text ended by the boundary symbol.

        Texts in which nothing was said are left out, as in training: no model has seen two boundary
        symbols in a row. Older words are not encoded: a conversation may be thousands of times as
        long as the room.
        """
        newest: list[int] = []  # backwards
        for text in reversed(texts):
            if len(newest) >= room:
                break
            words = self.words(text)
            if words:
                newest.append(BOUNDARY_ID)
            for word in reversed(words):
                if len(newest) >= room:
                    break
                newest.extend(reversed(self.encode_word(word)))
        return newest[: max(room, 0)][::-1]

    def encode_all(self, texts: Sequence[str]) -> EncodedTexts:
        """Tokens of many texts at once: those of `encode`, without an object for each word."""
        return EncodedTexts(*self._encoder.encode(tuple(texts), self._words_of))

    def piece(self, token_id: int) -> str:
        """Spelling of one token; in BPE a leading U+2581 stands for the space before a word."""
        return str(self._piece(token_id))

    def _words_of(self, chunk: str) -> list[tuple[int, ...]]:
        """The tokens of each word of what stands between two spaces."""
        return [self.encode_word(word) for word in self.words(chunk)]

    def _encode_word(self, word: str) -> tuple[int, ...]:
        """A word has a token, if only the unknown one; none is the boundary, whatever it spells."""
        if word == UNK:
            return (UNK_ID,)
        ids = self.vocabulary.encode(word, add_special_tokens=False).ids
        return tuple(token or UNK_ID for token in ids) or (UNK_ID,)


@functools.cache
def _punctuation() -> re.Pattern[str]:
    """`_ASCII_PUNCTUATION` for all texts, without what combines with the letter before it.

    `re` counts only letters and digits to a word. Joiners count where a letter comes after, too.
    """
    points = itertools.chain(*_WITH_COMBINING)
    marks = [point for point in points if unicodedata.category(chr(point)).startswith("M")]
    combining = _JOINERS + _as_ranges(marks)
    return re.compile(
        rf"_|[^\w\s'](?:(?<![{combining}])"  # neither letter nor combining
        rf"|(?<![^\W_].)(?<![{combining}].)[{combining}]*"  # combining with no letter
        rf"|(?<=[{_JOINERS}])[{_JOINERS}]*(?![^\W_]|[{combining}]))"  # joined to none
    )


def _as_ranges(points: Iterable[int]) -> str:
    """Ascending code points as they stand inside of a regular expression's brackets."""
    runs = itertools.groupby(enumerate(points), lambda entry: entry[1] - entry[0])
    ends = ([point for _, point in run] for _, run in runs)
    return "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in ends)


def _require_unknown(vocabulary: VocabularyTokenizer, where: str) -> None:
    """Pass if a word that nobody has seen has a token.

    Raises:
        DataError: it has not, or another one than a text's unknown words.
    """
    symbol = getattr(vocabulary.model, "unk_token", None)
    if isinstance(vocabulary.model, models.Unigram):  # which has a number, and tells its file alone
        number = json.loads(vocabulary.to_str())["model"]["unk_id"]
        symbol = None if number is None else vocabulary.id_to_token(number)
    if symbol not in (None, UNK):
        raise DataError(f"{where}: unknown words are {symbol!r}; need {UNK} or none")
    private = map(chr, range(0xE000, 0xF900))  # characters that stand for nothing
    strange = next((one for one in private if vocabulary.token_to_id(one) is None), "\U0010fffd")
    with _naming_fault(f"{where}: fails at unknown words", f"need {UNK} for them"):
        vocabulary.encode(strange, add_special_tokens=False)


@contextlib.contextmanager
def _naming_fault(what: str, remedy: str) -> Iterator[None]:
    """Say what is wrong where the tokenizers library fails.

    Raises:
        DataError: instead of its bare `Exception`, and of a panic, which is none.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{what} ({error}); {remedy}") from None
