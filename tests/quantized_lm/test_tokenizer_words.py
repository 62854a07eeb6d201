"""Text rules: what a word is, in every script."""

from __future__ import annotations

import itertools
import re
import sys
import unicodedata

import pytest

from quantized_lm.errors import DataError
from quantized_lm.tokenizer import TextRules


def test_normalization_lowers_case_and_drops_punctuation() -> None:
    rules = TextRules(case="lower", strip_punctuation=True)
    assert rules.words("The CAT, he didn\u2019t!") == ["the", "cat", "he", "didn't"]
    assert rules.words("re-enter snake_case") == ["re", "enter", "snake", "case"]
    assert TextRules(case="keep", strip_punctuation=False).words("A, b") == ["A,", "b"]
    assert TextRules(case="upper").words("ab") == ["AB"]


@pytest.mark.parametrize(
    "text",
    [
        "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e",  # Hindi's own name
        "\u0645\u064f\u062d\u064e\u0645\u064e\u0651\u062f",  # Arabic with vowel points
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian, its parts kept from joining
        "\u0e19\u0e49\u0e33 \u0e17\u0e35\u0e48",  # Thai with tone marks
        "q\u0307a",  # a letter with an accent that has no character of its own
        "a\U000e0100b",  # beyond the first planes
    ],
)
def test_what_combines_with_a_letter_is_part_of_its_word(text: str) -> None:
    for rules in (TextRules(), TextRules("keep", strip_punctuation=False)):
        assert rules.words(text) == text.split()
    assert TextRules().words(f"\u00bf{text}\u2026,{text}!") == text.split() * 2


def test_a_text_is_read_composed() -> None:
    for rules in (TextRules(), TextRules("keep", strip_punctuation=False)):
        assert rules.words("cafe\u0301 is") == ["caf\u00e9", "is"]
    assert TextRules(case="upper").words("cafe\u0301") == ["CAF\u00c9"]
    assert TextRules().words("\u0130stanbul") == ["i\u0307stanbul"]


def test_what_combines_with_no_letter_is_none() -> None:
    words = TextRules().words("\u2764\ufe0f a _\u0301\u0301b \u200dc\u200c d\u200c\u200d\U0001f467")
    assert words == ["a", "b", "c", "d"]
    assert TextRules().words("a\u200c\u200c\u0301b") == ["a\u200c\u200c\u0301b"]


@pytest.mark.parametrize("case", ["lower", "upper", "keep"])
def test_every_character_is_read_alike_in_all_spellings(case: str) -> None:
    rules = TextRules(case)
    for character in map(chr, range(sys.maxunicode + 1)):
        apart = unicodedata.normalize("NFD", character)
        if apart == character and unicodedata.category(character)[0] != "M":
            continue
        words = rules.words(f"a{character}b")
        assert words == rules.words(f"a{apart}b"), ascii(character)
        assert rules.words(" ".join(words)) == words, ascii(character)
        assert len(words) == 1 or unicodedata.category(character)[0] != "M", ascii(character)


def test_ascii_is_read_as_by_one_expression() -> None:
    for first, second in itertools.product(map(chr, range(128)), repeat=2):
        text = f"It{first}{second}s"
        assert TextRules().words(text) == re.sub(r"[^\w\s']|_|`", said_for, text.lower()).split()


def said_for(match: re.Match[str]) -> str:
    return "'" if match[0] == "`" else " "


def test_an_unknown_case_rule_is_refused() -> None:
    with pytest.raises(DataError, match="'lower', 'upper' or 'keep'"):
        TextRules(case="title")
