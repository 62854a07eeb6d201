"""Where a search of a lattice stops before it has proved anything."""

from __future__ import annotations

from dataclasses import dataclass

from quantized_lm.errors import InputError

ENDLESS = 2**62
_HIGHEST_ORDER = 2**31 - 1  # what the native search takes, as it takes numbers up to ENDLESS


@dataclass(frozen=True)
class SearchLimits:
    """How much is tried.

    Attributes:
        num_best: word sequences wanted.
        seeds: sequences that are scored first: the best by the lattice alone.
        order: of histories: of prefixes in the same state with the same last order - 1 words only
            the better one goes on. None merges nothing.
        beam: nats; what is expected to end this far below the totals found is left out. None
            leaves out only what cannot win.
        patience: LM steps without a better sequence: a better best one first, then a better last
            one of those wanted. None waits for ever.
        max_lm_steps: nodes run through the network. max_arcs: arcs of the lattice followed.

    Raises:
        InputError: one is out of range; the pointer names it.
    """

    num_best: int = 1
    seeds: int = 10
    order: int | None = 4
    beam: float | None = None
    patience: int | None = 300
    max_lm_steps: int = 6_000
    max_arcs: int = 5_000_000

    def __post_init__(self) -> None:
        for name in ("num_best", "seeds", "patience", "max_lm_steps", "max_arcs"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= ENDLESS:
                raise InputError(
                    f"{name} is {value}; need 1 or more, at most {ENDLESS}", pointer=f"/{name}"
                )
        if self.beam is not None and not self.beam >= 0:
            raise InputError(f"beam is {self.beam}; need 0 or more", pointer="/beam")
        if self.order is not None and not 2 <= self.order <= _HIGHEST_ORDER:
            raise InputError(
                f"order is {self.order}; need 2 or more, at most {_HIGHEST_ORDER}", pointer="/order"
            )

    @classmethod
    def exact(cls, *, num_best: int = 1) -> SearchLimits:
        """Nothing is left out that could win, however long that takes."""
        return cls(num_best, order=None, patience=None, max_lm_steps=ENDLESS, max_arcs=ENDLESS)
