from __future__ import annotations

import pytest

from quantized_lm.errors import DataError
from quantized_lm.tokenizer import BOUNDARY_ID, UNK_ID, TextRules, Tokenizer

LINES = ["the cat sees the dog", "the dog doesn't see the cat", "cats and dogs"] * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(iter(LINES), vocab_size=50, rules=TextRules())


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
