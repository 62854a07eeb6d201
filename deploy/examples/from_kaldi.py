"""Rescore n-best lists of Kaldi.

    python from_kaldi.py FOLDER [URL]

FOLDER has the text archives that steps/rnnlmrescore.sh leaves in archives.N before it asks its own
RNNLM: words_text, acwt, lmwt.withlm and lmwt.nolm. By hand, without the last one:

    lattice-to-nbest --acoustic-scale=0.083 --n=50 ark:lat.1 ark:- |
      nbest-to-linear ark:- ark:/dev/null ark,t:words ark,t:lmwt.withlm ark,t:acwt
    utils/int2sym.pl -f 2- words.txt words > words_text

Keys are UTTERANCE-RANK. Costs are negative logs: lower is better, so each changes its sign.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from service.client import Client, ClientSettings

LISTS_PER_REQUEST = 16
SETTINGS = ClientSettings(deadline_ms=10_000, on_invalid="first_pass")
INVERSE_ACOUSTIC_SCALE = 12
WEIGHT = 0.5


def read_costs(path: Path) -> dict[str, float]:
    """Costs by key, of a text archive of numbers."""
    pairs = (line.split() for line in path.read_text("utf-8").splitlines())
    return {key: float(cost) for key, cost in pairs}


def read_lists(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The n-best list of each utterance, and the weights for what is known of them."""
    acoustic, graph = read_costs(folder / "acwt"), read_costs(folder / "lmwt.withlm")
    without_lm = folder / "lmwt.nolm"
    rest = read_costs(without_lm) if without_lm.exists() else None
    lists: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in (folder / "words_text").read_text("utf-8").splitlines():
        key, *words = line.split()
        hypothesis: dict[str, Any] = {
            "text": " ".join(words).lower(),
            "am_score": -acoustic[key],
            "graph_score": -graph[key],
        }
        if rest is not None:
            hypothesis["extra"] = {"old_lm": rest[key] - graph[key]}
        lists[key.rpartition("-")[0]].append(hypothesis)
    utterances = [{"id": id_, "hypotheses": hypotheses} for id_, hypotheses in lists.items()]
    return utterances, weights_for(knows_old_lm=rest is not None)


def weights_for(*, knows_old_lm: bool) -> dict[str, Any]:
    """Kaldi's interpolation; where the old LM is not known alone, of the whole graph's score."""
    acoustic_scale = 1 / INVERSE_ACOUSTIC_SCALE
    if not knows_old_lm:
        scales = {"am_scale": acoustic_scale, "graph_scale": 1 - WEIGHT, "lm_scale": WEIGHT}
        return {**scales, "word_bonus": 0.0}  # else the model's own, which the preset has not
    parameters = {"weight": WEIGHT, "acoustic_scale": acoustic_scale}
    return {"preset": "kaldi", "parameters": parameters}


def main(folder: str, url: str = "http://127.0.0.1:8080") -> None:
    """Print the best text of each utterance, as lines of Kaldi's `text`."""
    lists, weights = read_lists(Path(folder))
    with Client(url, SETTINGS) as client:
        for start in range(0, len(lists), LISTS_PER_REQUEST):
            part = lists[start : start + LISTS_PER_REQUEST]
            for best in client.rescore(part, weights=weights).results:
                if best.degraded:
                    sys.stderr.write(f"{best.id}: first pass ({', '.join(best.degraded)})\n")
                sys.stdout.write(f"{best.id} {best.text}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
