"""Rescore lattices of k2 and icefall.

    python from_icefall.py FOLDER words.txt [URL]

FOLDER has icefall's recogs-*.txt, as `icefall.utils.store_transcripts` writes it, and the lattice
of each cut as CUT.k2.txt, which takes two lines behind `get_lattice`, where cuts are in the order
of the lattice:

    for index, cut_id in enumerate(cut_ids):
        (folder / f"{cut_id}.k2.txt").write_text(k2.to_str_simple(lattice[index]))

Within the decoder's process `service.k2_client.rescore_lattice` takes the k2.Fsa itself, with all
attributes and every bit of its scores.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from service.client import Client, ClientSettings

SETTINGS = ClientSettings(deadline_ms=10_000, on_invalid="first_pass")
# k2's text has one score per arc, am and graph together; icefall's am_scale stands in it already.
WEIGHTS = {"am_scale": 1.0, "lm_scale": 0.5}


def read_own(folder: Path) -> Iterator[tuple[str, str]]:
    """The id of each cut and the decoder's own text, lower case as the model's."""
    for path in sorted(folder.glob("recogs-*.txt")):
        for line in path.read_text("utf-8").splitlines():
            cut_id, _, said = line.partition(":\t")
            if said.startswith("hyp="):
                yield cut_id, " ".join(ast.literal_eval(said.removeprefix("hyp="))).lower()


def read_words(path: Path) -> dict[str, str]:
    """Words by id, of a words.txt."""
    pairs = (line.split() for line in path.read_text("utf-8").splitlines() if line.strip())
    return {index: word if word.startswith("<") else word.lower() for word, index in pairs}


def main(folder: str, words: str, url: str = "http://127.0.0.1:8080") -> None:
    """Print the best text of each cut."""
    symbols = read_words(Path(words))
    with Client(url, SETTINGS) as client:
        for cut_id, own in read_own(Path(folder)):
            lattice = Path(folder) / f"{cut_id}.k2.txt"
            if not lattice.exists():
                sys.stdout.write(f"{cut_id} {own}  (no lattice)\n")
                continue
            best = client.rescore_lattice(
                lattice.read_bytes(),
                format="k2-text",
                symbols=symbols,
                first_pass=[own],
                weights=WEIGHTS,
            )
            why = f"  ({', '.join(best.degraded)})" if best.degraded else ""
            sys.stdout.write(f"{cut_id} {best.text}{why}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
