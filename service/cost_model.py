"""How long the engine takes, learned from every forward pass.

    seconds = node * nodes + pass * passes + job * jobs

Least squares that forget exponentially, with no term below zero, drawn a little toward a prior.
An observation counts at most some typical errors away from what was expected, so that one pass
that the machine slept through says little, while a lasting change is learned within some ten.
"""

from __future__ import annotations

import math

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
    """The cost of one model's work."""

    def __init__(self) -> None:
        self._terms = list(PRIOR_S)
        self._squares = [[0.0] * len(TERMS) for _ in TERMS]
        self._products = [0.0] * len(TERMS)
        self._error_s = FIRST_ERROR_S
        self._surprises = 0  # in a row

    def term(self, name: str) -> float:
        """Seconds of one of TERMS: per node, per forward pass or per job."""
        return self._terms[TERMS.index(name)]

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

    def _add(self, counts: tuple[float, ...], seconds: float) -> None:
        keeps = KEEPS if self._surprises < LASTING else KEEPS_SURPRISED
        for row, products in enumerate(self._squares):
            for column, other in enumerate(counts):
                products[column] = keeps * products[column] + counts[row] * other
            self._products[row] = keeps * self._products[row] + counts[row] * seconds

    def _solve(self) -> None:
        """Coordinate descent from the last solution: a convex problem, and little has changed."""
        (nodes, node_pass, node_job), (_, passes, pass_job), (_, _, jobs) = self._squares
        own = [(1.0 + PRIOR_WEIGHT) * squares for squares in (nodes, passes, jobs)]
        wanted = [
            products + PRIOR_WEIGHT * squares * prior_s
            for products, squares, prior_s in zip(
                self._products, (nodes, passes, jobs), PRIOR_S, strict=True
            )
        ]
        node, per_pass, job = self._terms
        for _ in range(SWEEPS):  # written out: it is done between two passes
            node = max(wanted[0] - node_pass * per_pass - node_job * job, 0.0) / own[0]
            per_pass = max(wanted[1] - node_pass * node - pass_job * job, 0.0) / own[1]
            job = max(wanted[2] - node_job * node - pass_job * per_pass, 0.0) / own[2]
        self._terms = [node, per_pass, job]
