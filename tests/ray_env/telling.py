"""How a test's process in Ray's environment tells what it found: Ray prints as it likes. No Ray."""

from __future__ import annotations

import json

MARK = "found: "


def tell(found: object) -> None:
    """Print one line of JSON."""
    print(MARK + json.dumps(found), flush=True)  # noqa: T201
