"""What the engine did for a request in vain: whoever waited had left, or something failed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(eq=False)
class LostWork:
    """Counted while the request is answered; its key is charged for it.

    Attributes:
        tree_nodes: run through the network for lists, texts and lattices without a result.
        unanswered: the same for those with one, by model: it is lost too if the request fails.
    """

    tree_nodes: int = 0
    unanswered: Counter[str] = field(default_factory=Counter)
