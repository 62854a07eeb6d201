"""In Ray's environment: `secondpass rescore --engine ray` on two nodes, and in one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from service.cli import main as secondpass
from tests.ray_env.clusters import two_nodes
from tests.ray_env.telling import tell

LISTS = 150  # three tasks


def main(folder: Path) -> None:
    """Write OUT of both engines and of one list that cannot be ranked; tell the exit codes."""
    lists, wrong = folder / "lists.jsonl", folder / "wrong.jsonl"
    lists.write_text("".join(_line(index) for index in range(LISTS)), "utf-8")
    wrong.write_text(_line(0) + json.dumps({"id": "bad", "hypotheses": [{"text": "a"}]}), "utf-8")
    codes = [_run(lists, folder / "local.jsonl")]
    with two_nodes():
        for source, name in ((lists, "ray.jsonl"), (wrong, "none.jsonl")):
            codes.append(_run(source, folder / name, "--engine", "ray", "--workers", "2"))
    tell(codes)


def _line(index: int) -> str:
    texts = (f"they were going to see the {word}" for word in ("whether", "weather", index))
    hypotheses = [{"text": text, "am_score": -1.0 - rank} for rank, text in enumerate(texts)]
    return json.dumps({"id": f"u{index}", "hypotheses": hypotheses}) + "\n"


def _run(*arguments: object) -> int:
    sys.argv = ["secondpass", "rescore", *map(str, arguments)]
    try:
        secondpass()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
