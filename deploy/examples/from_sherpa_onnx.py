"""Rescore what sherpa-onnx-offline prints.

    python from_sherpa_onnx.py decoded.log [URL]

where decoded.log is the standard error of sherpa-onnx-offline, with modified_beam_search and, in a
version that has it, --num-return-paths. For each file it prints the file's name, the result as JSON
and a line of four dashes. A result has "hypotheses", best first, where more than one path was asked
for; without them it is a list of one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from service.client import Client, ClientSettings

LISTS_PER_REQUEST = 16
SETTINGS = ClientSettings(deadline_ms=10_000, on_invalid="first_pass")
# "score" is all of the first pass, a log-probability.
WEIGHTS = {"am_scale": 1.0, "lm_scale": 0.3}


def read_lists(lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The n-best list of each file, with the file's name as its id."""
    for name, line, dashes in zip(lines, lines[1:], lines[2:], strict=False):
        if dashes == "----" and line.startswith("{"):
            result = json.loads(line)
            paths = result.get("hypotheses") or [result]
            hypotheses = [
                {"text": path["text"].strip(), "am_score": path.get("score", 0.0)} for path in paths
            ]
            yield {"id": Path(name).name, "hypotheses": hypotheses}


def main(path: str, url: str = "http://127.0.0.1:8080") -> None:
    """Print the best text of each file."""
    lists = list(read_lists(Path(path).read_text("utf-8").splitlines()))
    with Client(url, SETTINGS) as client:
        for start in range(0, len(lists), LISTS_PER_REQUEST):
            part = lists[start : start + LISTS_PER_REQUEST]
            for best in client.rescore(part, weights=WEIGHTS).results:
                why = f"  ({', '.join(best.degraded)})" if best.degraded else ""
                sys.stdout.write(f"{best.id} {best.text}{why}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
