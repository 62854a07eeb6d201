from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as BpeTokenizer
from tokenizers import models

from quantized_lm import tokenizer as module
from quantized_lm.errors import DataError
from quantized_lm.tokenizer import BOUNDARY_ID, UNK_ID, TextRules, Tokenizer

LINES = ["the cat sees the dog", "the dog doesn't see the cat", "cats and dogs"] * 20


# Spaces and letters where a rule might see past a chunk: final sigma, ligatures, zero-width space.
TEXTS = st.text(
    alphabet="the cats ,.-_'\u2019\u00b4`ZQ7\n\t\x1c\x85\u2028\u00a0\u03a3\u00df\u0130\u200b\x00"
)
RULES = st.builds(TextRules, st.sampled_from(["lower", "upper", "keep"]), st.booleans())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(iter(LINES), vocab_size=50, rules=TextRules())


def check_encode_all(tokenizer: Tokenizer, texts: list[str]) -> None:
    together = tokenizer.encode_all(texts)
    alone = [tokenizer.encode(text) for text in texts]
    assert together.ids.tolist() == [token for one in alone for token in (*one.ids, 0)]
    assert together.num_tokens.tolist() == [len(one.ids) for one in alone]
    assert together.num_words.tolist() == [len(one.words) for one in alone]
    assert together.num_oov.tolist() == [len(one.oov) for one in alone]


def test_normalization_lowers_case_and_drops_punctuation() -> None:
    rules = TextRules(case="lower", strip_punctuation=True)
    assert rules.words("The CAT, he didn\u2019t!") == ["the", "cat", "he", "didn't"]
    assert rules.words("re-enter snake_case") == ["re", "enter", "snake", "case"]
    assert TextRules(case="keep", strip_punctuation=False).words("A, b") == ["A,", "b"]
    assert TextRules(case="upper").words("ab") == ["AB"]


def test_an_unknown_case_rule_is_refused() -> None:
    with pytest.raises(DataError, match="'lower', 'upper' or 'keep'"):
        TextRules(case="title")


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


def test_an_empty_text_has_no_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(" ... ").ids == ()


@given(st.lists(TEXTS, max_size=5), RULES)
def test_many_texts_at_once_are_what_each_is_alone(texts: list[str], rules: TextRules) -> None:
    check_encode_all(Tokenizer.train(iter(LINES), vocab_size=50, rules=rules), texts)


def test_the_memo_of_chunks_stays_small(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MEMO_WORDS", 3)
    monkeypatch.setattr(module, "_MEMO_CHARS", 4)
    for _ in range(2):
        check_encode_all(tokenizer, ["the cat sees a dog", "doglessness the cat"])
        assert len(tokenizer._chunks) <= 3
    assert "doglessness" not in tokenizer._chunks


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
