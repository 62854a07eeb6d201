from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantized_lm.errors import FormatError
from quantized_lm.quant import rans
from quantized_lm.quant.rans import LANE_SYMBOLS, TABLE_TOTAL, CodedRuns, Run


def table_of(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Frequencies near the weights; the first symbol takes what rounding leaves."""
    table: NDArray[np.int64] = np.floor(weights / weights.sum() * TABLE_TOTAL).astype(np.int64)
    table[weights > 0] = np.maximum(table[weights > 0], 1)
    table[weights.argmax()] += TABLE_TOTAL - table.sum()
    return table


def random_run(seed: int, length: int, num_symbols: int) -> Run:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(num_symbols, rng.choice([0.05, 1.0, 20.0])))
    table = table_of(np.where(weights > 1e-5, weights, 0.0))
    return Run(rng.choice(num_symbols, length, p=table / TABLE_TOTAL).astype(np.uint8), table)


def decoded(coded: CodedRuns, runs: list[Run]) -> list[NDArray[np.uint8]]:
    return rans.decode(coded.data, [len(run.symbols) for run in runs], [run.table for run in runs])


@settings(deadline=None, max_examples=50)
@given(
    runs=st.lists(
        st.builds(random_run, st.integers(0, 99), st.integers(0, 600), st.integers(1, 256)),
        max_size=5,
    )
)
def test_every_symbol_comes_back(runs: list[Run]) -> None:
    coded = rans.encode(runs)
    for run, symbols in zip(runs, decoded(coded, runs), strict=True):
        np.testing.assert_array_equal(symbols, run.symbols)
    assert coded.size_bytes.sum() == len(coded.data)


@pytest.mark.parametrize("length", [LANE_SYMBOLS - 1, LANE_SYMBOLS + 1, 3 * LANE_SYMBOLS + 7])
def test_lanes_of_unequal_length_come_back(length: int) -> None:
    runs = [random_run(1, length, 5), random_run(2, 17, 200), random_run(3, LANE_SYMBOLS, 2)]
    for run, symbols in zip(runs, decoded(rans.encode(runs), runs), strict=True):
        np.testing.assert_array_equal(symbols, run.symbols)


def test_a_run_takes_the_same_bytes_beside_any_others() -> None:
    runs = [random_run(seed, 500 * seed + 1, 40) for seed in range(4)]
    together = rans.encode(runs).size_bytes
    alone = [int(rans.encode([run]).size_bytes[0]) for run in runs]
    np.testing.assert_array_equal(together, alone)


def test_long_runs_are_within_a_fifth_of_a_percent_of_their_entropy() -> None:
    run = random_run(8, 20 * LANE_SYMBOLS, 125)
    share = run.table[run.table > 0] / TABLE_TOTAL
    entropy_bytes = -np.log2(run.table[run.symbols] / TABLE_TOTAL).sum() / 8
    assert len(share) > 50
    assert len(rans.encode([run]).data) < 1.002 * entropy_bytes


def test_one_symbol_alone_costs_its_states() -> None:
    run = Run(np.full(10_000, 3, np.uint8), np.array([0, 0, 0, TABLE_TOTAL]))
    coded = rans.encode([run])
    assert len(coded.data) == 3 * rans.STATE_BYTES
    np.testing.assert_array_equal(decoded(coded, [run])[0], run.symbols)


def test_words_in_another_order_are_refused() -> None:
    run = random_run(4, 9000, 100)
    data = bytearray(rans.encode([run]).data)
    data[20:22], data[22:24] = data[22:24], data[20:22]
    with pytest.raises(FormatError, match=r"do not come out even|need more"):
        rans.decode(bytes(data), [9000], [run.table])


def test_a_table_that_is_off_by_one_is_noticed() -> None:
    run = random_run(4, 9000, 100)
    wrong = run.table.copy()
    wrong[wrong.argmax()] -= 1
    wrong[wrong.argmin()] += 1
    with pytest.raises(FormatError, match=r"do not come out even|need more"):
        rans.decode(rans.encode([run]).data, [9000], [wrong])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-2], "need more"),
        (lambda data: data[:-1], "need 12 of states and whole words"),
        (lambda data: data[:7], "have 7 bytes; need 12 of states"),
        (lambda data: data + b"ab", "of .* words used"),
        (lambda data: bytes(4) + data[4:], "state is 0; need at least 65536"),
    ],
)
def test_damage_is_refused_with_numbers(change: object, message: str) -> None:
    run = random_run(5, 9000, 100)
    assert callable(change)
    with pytest.raises(FormatError, match=message):
        rans.decode(change(rans.encode([run]).data), [9000], [run.table])
