from __future__ import annotations

import gc
import json
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as BpeTokenizer
from tokenizers import models

from quantized_lm import tokenizer as module
from quantized_lm.errors import DataError
from quantized_lm.tokenizer import BOUNDARY_ID, UNK_ID, TextRules, Tokenizer, is_word

LINES = ["the cat sees the dog", "the dog doesn't see the cat", "cats and dogs"] * 20


# Spaces and letters where a rule might see past a chunk: final sigma, ligatures, zero-width space,
# what combines with a letter.
TEXTS = st.text(
    alphabet="the cats ,.-_'\u2019\u00b4`ZQ7\n\t\x1c\x85\u2028\u00a0\u03a3\u00df\u0130\u200b\x00"
    "\u0301\u0915\u093f\u094d\u200c"
)
NO_WORDS = ["<eps>", "<s>", "</s>", "!NULL", "!SENT_START", "[noise]", "++COUGH++", "SIL", "#0"]
# Of chunks that are no words, nearly none, or the unknown one; long s and Kelvin sign are letters.
CHUNKS = st.sampled_from(
    [
        *NO_WORDS,
        "<unk>",
        "<UNK>",
        "<un\u212a>",
        "the",
        "sil.",
        "\u017fil",
        "[a",
        "b]",
        "C++",
        "#",
        "!",
    ]
)
MARKED = st.lists(CHUNKS | TEXTS | st.text(alphabet="<>[]!#+_0silSunk "), max_size=6).map(" ".join)
RULES = st.builds(TextRules, st.sampled_from(["lower", "upper", "keep"]), st.booleans())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(iter(LINES), vocab_size=50, rules=TextRules())


@given(st.lists(TEXTS | MARKED, max_size=5), st.integers(-2, 60))
def test_context_is_the_end_of_all_its_tokens(
    tokenizer: Tokenizer, texts: list[str], room: int
) -> None:
    said = [spelled for text in texts if (spelled := tokenizer.encode(text).ids)]
    ids = [token for spelled in said for token in (*spelled, BOUNDARY_ID)]
    assert tokenizer.context_ids(texts, room=room) == ids[max(0, len(ids) - room) :]


def test_silence_leaves_no_context(tokenizer: Tokenizer) -> None:
    said = tokenizer.context_ids(["the cat", "sat"], room=60)
    assert tokenizer.context_ids(["the cat", "", "[noise]", "sat", "", "..."], room=60) == said
    assert tokenizer.context_ids([""], room=60) == []


def test_context_that_does_not_fit_is_not_encoded(tokenizer: Tokenizer) -> None:
    tokenizer._memo.cache_clear()
    tokenizer.context_ids([f"old{number} " * 100 for number in range(1000)], room=8)
    assert tokenizer._memo.cache_info().misses == 1


def test_what_is_longer_than_a_word_is_not_remembered(tokenizer: Tokenizer) -> None:
    tokenizer._memo.cache_clear()
    words = ["a" * 64, "a" * 65, "a" * 16_000]
    check_encode_all(tokenizer, words)
    assert [len(tokenizer.encode(word).ids) for word in words] == [65, 66, 16_001]
    assert tokenizer._memo.cache_info().currsize == 1


def check_encode_all(tokenizer: Tokenizer, texts: list[str]) -> None:
    """Twice: as the chunks are new, and as they are known."""
    for _ in range(2):
        check_encoded(tokenizer, texts)


def check_encoded(tokenizer: Tokenizer, texts: list[str]) -> None:
    together = tokenizer.encode_all(texts)
    alone = [tokenizer.encode(text) for text in texts]
    assert together.ids.tolist() == [token for one in alone for token in (*one.ids, 0)]
    assert together.num_tokens.tolist() == [len(one.ids) for one in alone]
    assert together.num_words.tolist() == [len(one.words) for one in alone]
    assert together.num_oov.tolist() == [len(one.oov) for one in alone]


def test_a_prefix_of_words_is_a_prefix_of_tokens(tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode("the cat sees the dog")
    part = tokenizer.encode("the cat sees")
    assert whole.ids[: len(part.ids)] == part.ids
    assert whole.word_starts[:3] == part.word_starts
    assert (
        "".join(tokenizer.piece(i) for i in whole.ids)
        == "\u2581the\u2581cat\u2581sees\u2581the\u2581dog"
    )


def test_a_word_with_an_unknown_letter_is_reported(tokenizer: Tokenizer) -> None:
    encoding = tokenizer.encode("the zq cat 7 7")
    assert encoding.oov == ("zq", "7", "7")
    assert UNK_ID in encoding.ids
    assert BOUNDARY_ID not in encoding.ids


@pytest.mark.parametrize("symbol", [*NO_WORDS, ""])
def test_pauses_noises_and_marks_are_no_words(tokenizer: Tokenizer, symbol: str) -> None:
    assert not is_word(symbol)
    assert tokenizer.encode(f"the {symbol} cat") == tokenizer.encode("the cat")
    assert tokenizer.encode(symbol).ids == ()


@pytest.mark.parametrize("symbol", ["cat", "silence", "o'clock", "<unk>", "a<b", "C++", "[", "3"])
def test_what_is_said_is_a_word(symbol: str) -> None:
    assert is_word(symbol)


def test_the_symbol_of_an_unknown_word_is_one(tokenizer: Tokenizer) -> None:
    for rules in (TextRules(), TextRules(case="upper"), TextRules("keep", strip_punctuation=False)):
        encoding = Tokenizer(tokenizer.vocabulary, rules).encode("the <unk> [noise] <UNK> cat")
        first, _, third = encoding.word_starts[1:]
        assert encoding.ids[first:third] == (UNK_ID, UNK_ID)
        assert encoding.words[1:3] == ("<unk>", "<unk>")
        assert encoding.oov.count("<unk>") == 2
    assert tokenizer.encode("<unk>").ids == (UNK_ID,) != tokenizer.encode("unk").ids


def test_an_empty_text_has_no_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(" ... ").ids == ()


@given(st.lists(TEXTS | MARKED, max_size=5), RULES)
def test_many_texts_at_once_are_what_each_is_alone(texts: list[str], rules: TextRules) -> None:
    check_encode_all(Tokenizer.train(iter(LINES), vocab_size=50, rules=rules), texts)


SPACES = [character for character in map(chr, range(sys.maxunicode + 1)) if character.isspace()]


@pytest.mark.parametrize("around", ["", "\u00e9"])  # ASCII is split apart from other texts
def test_texts_are_split_where_python_splits_them(tokenizer: Tokenizer, around: str) -> None:
    assert len(SPACES) > 20
    tokenizer = Tokenizer(tokenizer.vocabulary, TextRules(strip_punctuation=False))
    ascii_characters = [*map(chr, range(128))]
    near = [chr(ord(space) + step) for space in SPACES for step in (-1, 1)]
    check_encode_all(tokenizer, [f"{around}the{c}{c}cat{c}" for c in SPACES])
    check_encode_all(tokenizer, [f"{c}the{c}cat {around}" for c in (*ascii_characters, *near)])


def test_no_texts_have_no_tokens(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode_all([])
    assert encoded.ids.shape == encoded.num_tokens.shape == (0,)
    assert encoded.ids.dtype == "int32"
    assert encoded.num_words.dtype == "int64"


def test_a_thousand_texts_and_a_very_long_word(tokenizer: Tokenizer) -> None:
    texts = [f"the cat{number} sees the {'dog' * (number % 30)}" for number in range(1000)]
    check_encode_all(tokenizer, [*texts, "cat" * 5000, "\u00e9" * 5000])


def test_half_a_surrogate_pair_is_what_it_is_alone(tokenizer: Tokenizer) -> None:
    check_encode_all(tokenizer, ["the \ud800 cat\udfff \U00010000 \ud800\udc00"])
    keeping = Tokenizer(tokenizer.vocabulary, TextRules(strip_punctuation=False))
    with pytest.raises(Exception) as alone:  # noqa: PT011 - the library's own
        keeping.encode("the \ud800 cat")
    with pytest.raises(alone.type):
        keeping.encode_all(["the \ud800 cat"])
    check_encode_all(keeping, ["the cat"])


def test_what_is_no_text_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TypeError, match="a text is no str"):
        tokenizer.encode_all(["the", b"cat"])  # type: ignore[list-item]


def small_memo(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tokenizer, list[str]]:
    """A tokenizer that remembers 3 chunks of up to 4 characters, and the chunks it spelled."""
    monkeypatch.setattr(module, "_MEMO_WORDS", 3)
    monkeypatch.setattr(module, "_MEMO_CHARS", 4)
    forgetful, spelled = Tokenizer(tokenizer.vocabulary, tokenizer.rules), []

    def words_of(chunk: str) -> list[tuple[int, ...]]:
        spelled.append(chunk)
        return Tokenizer._words_of(forgetful, chunk)

    monkeypatch.setattr(forgetful, "_words_of", words_of)
    return forgetful, spelled


def test_the_memo_of_chunks_stays_small(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgetful, _ = small_memo(tokenizer, monkeypatch)
    for _ in range(2):
        check_encode_all(forgetful, ["the cat sees a dog", "doglessness the cat"])
        assert len(forgetful._encoder) <= 3


def test_a_chunk_is_spelled_once_unless_it_is_long_or_the_memo_was_full(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgetful, spelled = small_memo(tokenizer, monkeypatch)
    forgetful.encode_all(["a cat cat \u00e9\u00e9\u00e9\u00e9", "cat a"])
    assert spelled == ["a", "cat", "\u00e9\u00e9\u00e9\u00e9"]
    forgetful.encode_all(["doggy", "doggy \u00e9 cat a"])
    assert spelled[3:] == ["doggy", "doggy", "\u00e9", "cat", "a"]


def test_a_memo_that_grows_forgets_nothing(tokenizer: Tokenizer) -> None:
    fresh = Tokenizer(tokenizer.vocabulary, tokenizer.rules)
    texts = [f"{number:x}" * (1 + number % 4) for number in range(5000)]
    check_encode_all(fresh, texts)
    assert len(fresh._encoder) == len(set(texts))


def test_texts_may_be_encoded_while_a_chunk_is_spelled(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgetful, spelled = small_memo(tokenizer, monkeypatch)
    remember = forgetful._words_of

    def interrupted(chunk: str) -> list[tuple[int, ...]]:
        words = remember(chunk)
        if spelled.count(chunk) == 1:
            forgetful.encode_all([chunk, "b c d e f g"])
        return words

    monkeypatch.setattr(forgetful, "_words_of", interrupted)
    check_encode_all(forgetful, ["the cat sees", "a dog the cat"])


def test_a_chunk_that_cannot_be_spelled_leaves_the_memo_as_it_was(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = Tokenizer(tokenizer.vocabulary, tokenizer.rules)

    def fails(_: str) -> list[tuple[int, ...]]:
        raise DataError("no")

    with monkeypatch.context() as patched:
        patched.setattr(fresh, "_words_of", fails)
        with pytest.raises(DataError, match="no"):
            fresh.encode_all(["the cat"])
    assert len(fresh._encoder) == 0
    check_encode_all(fresh, ["the cat"])


def test_threads_share_a_memo(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MEMO_WORDS", 20)
    shared = Tokenizer(tokenizer.vocabulary, tokenizer.rules)
    texts = [[f"the cat{n % k} sees \u00e9{n} dogs" for n in range(60)] for k in range(1, 9)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda one: check_encode_all(shared, one), texts))
    finally:
        sys.setswitchinterval(interval)
    assert len(shared._encoder) <= 20


def test_a_tokenizer_goes_when_nobody_needs_it(tokenizer: Tokenizer) -> None:
    gone = Tokenizer(tokenizer.vocabulary, tokenizer.rules)
    gone.encode_all(["the cat"])
    watched = weakref.ref(gone)
    del gone
    gc.collect()
    assert watched() is None


def test_a_word_without_pieces_is_unknown() -> None:
    bpe = BpeTokenizer(models.BPE(vocab={"</s>": 0, "<unk>": 1, "a": 2}, merges=[]))
    tokenizer = Tokenizer(bpe, TextRules())
    assert tokenizer.encode("b a b").oov == ("b", "b")
    check_encode_all(tokenizer, ["b a b"])


def test_saving_and_loading_changes_nothing(tokenizer: Tokenizer) -> None:
    again = Tokenizer.from_json(tokenizer.to_json(), tokenizer.rules, where="memory")
    assert again.vocab_size == tokenizer.vocab_size
    assert again.encode("cats and dogs") == tokenizer.encode("cats and dogs")


def test_a_file_that_is_no_vocabulary_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="not a tokenizer"):
        Tokenizer.from_json(b"{}", TextRules(), where="x/tokenizer.json")
    swapped = tokenizer.to_json().replace(b'"</s>"', b'"</t>"')
    with pytest.raises(DataError, match="</s> has id None; need 0"):
        Tokenizer.from_json(swapped, TextRules(), where="x")


def test_what_a_file_says_of_lengths_is_left_out(tokenizer: Tokenizer) -> None:
    odd = BpeTokenizer.from_str(tokenizer.to_json().decode())
    odd.enable_padding(length=100, pad_token="</s>")
    odd.enable_truncation(max_length=1)
    again = Tokenizer.from_json(odd.to_str().encode(), tokenizer.rules, where="x")
    assert again.encode("cats and zebras") == tokenizer.encode("cats and zebras")


def test_an_unknown_word_of_a_unigram_model_is_reported() -> None:
    unigram = models.Unigram([("</s>", 0.0), ("<unk>", 0.0), ("a", 0.0)], UNK_ID)
    content = BpeTokenizer(unigram).to_str().encode()
    tokenizer = Tokenizer.from_json(content, TextRules(), where="x")
    assert tokenizer.encode("b a").oov == ("b",)


def test_a_file_that_the_library_panics_at_is_refused(tokenizer: Tokenizer) -> None:
    value = json.loads(tokenizer.to_json())
    value["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    with pytest.raises(DataError, match="x: not a tokenizer.json .*charsmap.*make it again"):
        Tokenizer.from_json(json.dumps(value).encode(), TextRules(), where="x")


def test_dropout_of_merges_is_left_out(tokenizer: Tokenizer) -> None:
    value = json.loads(tokenizer.to_json())
    value["model"]["dropout"] = 1.0
    content = json.dumps(value).encode()
    again = Tokenizer.from_json(content, tokenizer.rules, where="x")
    assert again.encode("cats and dogs") == tokenizer.encode("cats and dogs")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (models.WordLevel({"</s>": 0, "<unk>": 1, "[UNK]": 2}, unk_token="[UNK]"), "'\\[UNK\\]'"),
        (models.BPE({"</s>": 0, "<unk>": 1, "a": 2}, [], unk_token="a"), "'a'; need <unk> or none"),
        (models.Unigram([("</s>", 0.0), ("<unk>", 0.0)]), "fails at unknown words"),
        (models.Unigram([("</s>", 0.0), ("<unk>", 0.0), ("a", 0.0)], 2), "'a'; need <unk> or none"),
    ],
)
def test_a_vocabulary_with_something_else_for_unknown_words_is_refused(
    model: models.Model, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Tokenizer.from_json(BpeTokenizer(model).to_str().encode(), TextRules(), where="x")


def test_the_largest_id_may_be_of_an_added_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.largest_id == tokenizer.vocab_size - 1
    more = BpeTokenizer.from_str(tokenizer.to_json().decode())
    more.add_tokens(["zebra"])
    assert Tokenizer(more, TextRules()).largest_id == tokenizer.vocab_size
