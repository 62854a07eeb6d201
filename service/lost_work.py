"""What the engine did for a request in vain: whoever waited had left, or a pass failed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)
class LostWork:
    """Counted while the request is answered; its key is charged for it.

    Attributes:
        tree_nodes: run through the network for lists, texts and lattices without a result.
    """

    tree_nodes: int = 0
