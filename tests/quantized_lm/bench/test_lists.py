"""Claims about the lists that are timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantized_lm.bench import lists
from quantized_lm.bench.lists import (
    made_up_lists,
    made_up_texts,
    mean_shape,
    read_texts,
    shape_of,
)
from quantized_lm.bench.weights import SIZES
from quantized_lm.errors import DataError


def test_a_shape_counts_contexts_nodes_and_padding() -> None:
    shape = shape_of([(3, 4, 5), (3, 4), (7,)])
    assert (shape.contexts, shape.padded) == (4 + 3 + 2, 3 * 4)
    assert shape.nodes == 5  # the root, 3, 3 4, 3 4 5, 7
    assert shape.ratio == pytest.approx(9 / 5)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_made_up_lists_are_as_real_ones(size: object) -> None:
    assert isinstance(size, type(SIZES["s"]))
    drawn = made_up_lists(size.lists, size.vocab_size, seed=size.seed)
    shape = mean_shape(drawn)
    # Means of 100-best lists made from news sentences with confusable words.
    assert shape.contexts == pytest.approx(2153, rel=0.02)
    assert shape.nodes == pytest.approx(633, rel=0.02)
    ratios = [shape_of(one).ratio for one in drawn]
    assert ratios == sorted(ratios)
    assert 2.0 < ratios[0] < 2.6
    assert 4.8 < ratios[-1] < 6.6


def test_hypotheses_are_distinct_and_ids_in_range() -> None:
    for one in made_up_lists(2, 50, hypotheses=30):
        assert len(set(one)) == 30
        assert all(2 <= token < 50 for tokens in one for token in tokens)


def test_one_seed_gives_one_set_of_lists() -> None:
    first = made_up_lists(1, 99, hypotheses=20, seed=3)
    lists._drawn_lists.cache_clear()
    assert made_up_lists(1, 99, hypotheses=20, seed=3) == first
    assert made_up_lists(1, 99, hypotheses=20, seed=4) != first


def test_texts_are_rows_of_words() -> None:
    (texts,) = made_up_texts(1, hypotheses=20)
    assert len(texts) == 20
    assert all(word.isalpha() for text in texts for word in text.split())


def test_real_lists_are_taken_from_all_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "lists.jsonl"
    records = [
        {"utt": f"u{n}", "hyps": [{"text": f"a {n}"}, {"text": f"a {n}"}, {"text": f"b {n}"}]}
        for n in range(9)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_texts(path, hypotheses=5, count=3) == [
        ("a 0", "b 0"),
        ("a 4", "b 4"),
        ("a 8", "b 8"),
    ]
    assert read_texts(path, hypotheses=1, count=99)[-1] == ("a 8",)


def test_a_file_without_lists_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no n-best list"):
        read_texts(path, hypotheses=5, count=3)
