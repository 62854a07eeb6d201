"""How long the engine takes, learned from every forward pass.

    seconds = node * nodes + pass * passes + job * jobs

Least squares that forget exponentially, with no term below zero, drawn a little toward a prior.
An observation counts at most some typical errors away from what was expected, so that one pass
that the machine slept through says little, while a lasting change is learned within some ten.
"""

from __future__ import annotations

import math
from collections.abc import Callable

TERMS = ("node", "pass", "job")
PRIOR_S = (20e-6, 500e-6, 50e-6)  # a small model on two cores
KEEPS = 0.95  # of what was known, per pass: half of it after 14
KEEPS_SURPRISED = 0.5  # once a change seems to last
SURPRISE = 0.5  # of what was expected
LASTING = 3  # surprises in a row
PRIOR_WEIGHT = 0.003  # of what was observed: decides what observations leave open
CLIP = 4.0  # typical errors
LEAST_ERROR = 0.1  # of what was expected: no model of three terms is better
FIRST_ERROR_S = 0.01
ERROR_RATE = 0.1  # how fast the typical error follows: it can triple within five passes
SWEEPS = 8
SHORTEST_S = 1e-6


class CostModel:
    """The cost of one model's work.

    Args:
        show: called with a term's name and its seconds whenever they have changed.
    """

    def __init__(self, show: Callable[[str, float], None] = lambda _term, _seconds: None) -> None:
        self._show = show
        self._terms = list(PRIOR_S)
        self._squares = [[0.0] * len(TERMS) for _ in TERMS]
        self._products = [0.0] * len(TERMS)
        self._error_s = FIRST_ERROR_S
        self._surprises = 0  # in a row
        self._publish()

    @property
    def terms(self) -> dict[str, float]:
        """Seconds per node, per forward pass and per job."""
        return dict(zip(TERMS, self._terms, strict=True))

    def seconds(self, nodes: int, passes: int, jobs: int) -> float:
        """How long that much work is expected to take."""
        node, per_pass, job = self._terms
        return node * nodes + per_pass * passes + job * jobs

    def observe(self, nodes: int, jobs: int, seconds: float) -> None:
        """Learn from one forward pass and what went with it."""
        expected = self.seconds(nodes, 1, jobs)
        error = seconds - expected
        is_surprise = abs(error) > SURPRISE * expected
        self._surprises = self._surprises + 1 if is_surprise else 0
        most = CLIP * max(self._error_s, LEAST_ERROR * expected)
        error = math.copysign(min(abs(error), most), error)
        self._error_s += ERROR_RATE * (abs(error) - self._error_s)
        # Weighed so that errors count as shares: short passes are to be as right as long ones.
        weight = 1.0 / max(expected + error, SHORTEST_S)
        counts = (nodes * weight, weight, jobs * weight)
        self._add(counts, (expected + error) * weight)
        self._solve()
        self._publish()

    def _add(self, counts: tuple[float, ...], seconds: float) -> None:
        keeps = KEEPS if self._surprises < LASTING else KEEPS_SURPRISED
        for row, products in enumerate(self._squares):
            for column, other in enumerate(counts):
                products[column] = keeps * products[column] + counts[row] * other
            self._products[row] = keeps * self._products[row] + counts[row] * seconds

    def _solve(self) -> None:
        """Coordinate descent from the last solution: a convex problem, and little has changed."""
        terms = self._terms
        for _ in range(SWEEPS):
            for row, squares in enumerate(self._squares):
                of_node, of_pass, of_job = squares
                own, drawn = squares[row], squares[row] * PRIOR_WEIGHT
                all_terms = of_node * terms[0] + of_pass * terms[1] + of_job * terms[2]
                wanted = self._products[row] - all_terms + own * terms[row] + drawn * PRIOR_S[row]
                terms[row] = max(wanted / (own + drawn), 0.0)

    def _publish(self) -> None:
        for term, seconds in self.terms.items():
            self._show(term, seconds)
