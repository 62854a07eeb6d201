from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantized_lm.pipeline.batches import (
    IGNORED,
    Grouping,
    WindowPacker,
    held_out_windows,
    share_cut,
)

LINES = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1, max_size=40)


def shard(lines: list[list[int]]) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    return np.asarray([token for line in lines for token in (*line, 0)], dtype=np.uint16)


@settings(deadline=None)
@given(LINES)
def test_measuring_sees_every_line_once_and_alone(lines: list[list[int]]) -> None:
    seen = []
    for windows in held_out_windows(shard(lines), window=16, batch_windows=2):
        for row in range(2):
            for number in range(windows.document[row].max() + 1):
                place = windows.document[row] == number
                assert windows.inputs[row][place][0] == 0
                assert (windows.inputs[row][place][1:] == windows.targets[row][place][:-1]).all()
                seen.append(windows.targets[row][place].tolist())
    assert sorted(seen) == sorted([*line, 0] for line in lines)


@settings(deadline=None)
@given(LINES, st.integers(0, 5))
def test_a_resumed_packer_goes_on_as_if_it_had_not_stopped(
    lines: list[list[int]], batches: int
) -> None:
    def packer() -> WindowPacker:
        return WindowPacker(shard(lines), window=16, grouping=Grouping(0.3, 0.3), seed=4)

    first, second = packer(), packer()
    for _ in range(batches):
        first.batch(2)
    second.resume(first.state)
    for _ in range(3):
        expected, got = first.batch(2), second.batch(2)
        assert (expected.inputs == got.inputs).all()
        assert (expected.targets == got.targets).all()
        assert (expected.document == got.document).all()


def test_merged_lines_lose_the_boundary_between_them_and_context_keeps_it() -> None:
    lines = [[1, 2], [3], [4, 5], [6]]
    merged = WindowPacker(shard(lines), window=16, grouping=Grouping(merge=1.0)).batch(1)
    assert merged.targets[0][:7].tolist() == [1, 2, 3, 4, 5, 6, 0]
    in_context = WindowPacker(shard(lines), window=16, grouping=Grouping(context=1.0)).batch(1)
    assert in_context.targets[0][:10].tolist() == [1, 2, 0, 3, 0, 4, 5, 0, 6, 0]
    assert (in_context.document[0][:10] == 0).all()


def test_padding_is_ignored_and_belongs_to_no_document() -> None:
    windows = WindowPacker(shard([[1, 2, 3]]), window=6, epochs=1).batch(2)
    assert windows.targets.tolist() == [[1, 2, 3, 0, IGNORED, IGNORED], [IGNORED] * 6]
    assert windows.document[0].tolist() == [0, 0, 0, 0, -1, -1]
    assert windows.num_tokens == 4


def test_a_document_longer_than_the_window_is_cut() -> None:
    windows = WindowPacker(shard([[1, 2, 3, 4, 5]]), window=3).batch(1)
    assert windows.inputs.tolist() == [[0, 1, 2]]
    assert windows.targets.tolist() == [[1, 2, 3]]


def test_epochs_differ_and_seeds_differ() -> None:
    lines = [[n % 9 + 1] * (n % 3 + 1) for n in range(60)]
    packer = WindowPacker(shard(lines), window=200, seed=1)
    epochs = [packer.batch(1).targets.tolist() for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert WindowPacker(shard(lines), window=200, seed=2).batch(1).targets.tolist() != epochs[0]


@settings(deadline=None)
@given(LINES, st.integers(0, 3))
def test_documents_of_running_text_are_neighboring_lines_that_fill_the_window(
    lines: list[list[int]], seed: int
) -> None:
    packer = WindowPacker(shard(lines), window=24, grouping=Grouping(continuous=True), seed=seed)
    whole = [token for line in lines for token in (*line, 0)]
    seen = 0
    documents = []
    while seen < len(whole):
        windows = packer.batch(1)
        for number in range(windows.document.max() + 1):
            if seen < len(whole):  # what follows belongs to the next epoch
                documents.append(windows.targets[windows.document == number].tolist())
                seen += len(documents[-1])
    text = "," + ",".join(map(str, whole)) + ","
    assert seen == len(whole)
    for part in documents:
        assert part[-1] == 0
        assert "," + ",".join(map(str, part)) + "," in text
    longest = max(len(line) + 1 for line in lines)
    # All but the last document of either stretch, before and after the start, leave no room.
    assert sum(len(part) + longest <= 24 for part in documents) <= 2


def test_measuring_running_text_starts_at_its_first_line() -> None:
    lines = [[n % 9 + 1] * 3 for n in range(40)]
    windows = list(held_out_windows(shard(lines), window=16, batch_windows=99, continuous=True))
    assert sum(part.num_tokens for part in windows) == 160
    documents = {tuple(row[row != IGNORED]) for part in windows for row in part.targets}
    assert tuple(shard(lines)[:16]) in documents


def test_what_stands_past_a_window_of_its_line_is_counted() -> None:
    tokens = shard([[2, 3, 4, 5], [2], [2, 3]])
    assert share_cut(tokens, 5) == 0.0
    assert share_cut(tokens, 2) == pytest.approx((3 + 0 + 1) / 10)
