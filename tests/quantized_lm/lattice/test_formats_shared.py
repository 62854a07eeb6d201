"""What every reader relies on: the check of a lattice, and topological numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.lattice import Lattice, Ragged, require_valid
from quantized_lm.lattice.order import arc_on_cycle, topological_order

from .format_cases import small


def int32(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("damage", "pointer", "message"),
    [
        (lambda one: replace(one, src=int32(0, 0, 1, -1)), "/arcs/3", "need 0 or more"),
        (lambda one: replace(one, src=int32(0, 1, 0, 2)), "/arcs/2", "before the arc above it"),
        (lambda one: replace(one, dst=int32(1, 1, 1, 3)), "/arcs/2", "not after its start"),
        (lambda one: replace(one, dst=int32(1, 1, 2, 2**31 - 1)), "/arcs/3", "at most 5 states"),
        (lambda one: replace(one, dst=int32(2, 2, 2, 3)), "/arcs", "state 1 cannot be reached"),
        (lambda one: replace(one, src=int32(0, 0, 0, 2)), "/arcs", "no arc leaves state 1"),
        (lambda one: replace(one, src=int32()), "/arcs", "no arcs"),
        (lambda one: replace(one, dst=int32(1)), "/dst", "1 entries for 4 arcs"),
        (lambda one: replace(one, am=np.array([0, np.nan, 0, 0])), "/arcs/1", "am score nan"),
        (lambda one: replace(one, graph=np.array([0, 0, np.inf, 0])), "/arcs/2", "graph score inf"),
        (lambda one: replace(one, symbols={1: "a", 9: "b"}), "/arcs/1", "word 2"),
        (
            lambda one: replace(one, words=Ragged(one.words.splits, int32(1, 0, 9))),
            "/arcs/1",
            "word 0",
        ),
        (lambda one: replace(one, state_attributes={"time_s": np.zeros(2)}), "/time_s", "4 states"),
    ],
)
def test_a_lattice_that_is_none_is_refused_where_it_is_bad(
    damage: object, pointer: str, message: str
) -> None:
    assert callable(damage)
    with pytest.raises(LatticeError, match=message) as caught:
        require_valid(damage(small()))
    assert caught.value.pointer == pointer


def test_states_in_order_keep_their_numbers_and_others_change_as_little_as_can_be() -> None:
    assert topological_order(np.array([0, 0, 1]), np.array([2, 1, 3]), 4).tolist() == [0, 1, 2, 3]
    assert topological_order(np.array([0, 2, 1]), np.array([2, 1, 3]), 4).tolist() == [0, 2, 1, 3]


def test_a_cycle_is_found_by_one_of_its_arcs() -> None:
    src, dst = np.array([0, 1, 2, 2, 3]), np.array([1, 2, 1, 3, 4])
    order = topological_order(src, dst, 5)
    assert order.tolist() == [0, -1, -1, -1, -1]
    assert arc_on_cycle(src, dst, order) in (1, 2)


def test_rows_of_a_lattice_are_counted() -> None:
    lattice: Lattice = small()
    assert (lattice.num_arcs, lattice.num_states, lattice.final) == (4, 4, 3)
