"""In k2's environment: what k2 finds in its lattices, and in the same back from this package.

Prints one JSON object: for each lattice the names of k2's results that are not bit for bit the
same, its best words, and the unique word sequences of random paths with the score of the best path
of each.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.k2_fsa import from_lattice, from_lattices, to_lattice, to_lattices

CLEAN = not any(name == "torch" or "_cpu" in name for name in sys.modules)

import k2  # noqa: E402 - only now, as importing ours must not need it
import torch  # noqa: E402

from tests.k2_env import toys  # noqa: E402

_PATHS = 2000


def main() -> None:
    """Print the findings."""
    compared = {}
    for name, fsa in toys.lattices().items():
        is_one = len(fsa.shape) == 2
        back = from_lattice(to_lattice(fsa)) if is_one else from_lattices(to_lattices(fsa))
        here, there = (k2.create_fsa_vec([one]) if is_one else one for one in (fsa, back))
        ours, theirs = results(here), results(there)
        compared[name] = {
            "different": [key for key, value in ours.items() if not _equal(value, theirs[key])],
            "sequences": [sequences(here[index]) for index in range(here.shape[0])],
        }
    found = {"imports_are_light": CLEAN, "lattices": compared, "refusal": _refusal()}
    print(json.dumps(found))  # noqa: T201


def results(vector: Any) -> dict[str, Any]:
    """Everything that k2 computes of lattices and that decoders use."""
    found: dict[str, Any] = {}
    for is_double in (False, True):
        best = k2.shortest_path(vector, use_double_scores=is_double)
        found[f"shortest_path {is_double}"] = best.as_dict()["arcs"]
        paths = k2.random_paths(vector, use_double_scores=is_double, num_paths=50)
        found[f"random_paths {is_double}"] = paths.values
        for is_log in (False, True):
            key = f"{is_double} {is_log}"
            found[f"tot_scores {key}"] = vector.get_tot_scores(is_double, is_log)
            found[f"arc_post {key}"] = vector.get_arc_post(is_double, is_log)
    found["inverted"] = k2.invert(vector).arcs.values() if hasattr(vector, "aux_labels") else None
    return found


def words_of(fsa: Any) -> list[list[int]]:
    """Words of each arc: aux_labels, else labels."""
    labels = getattr(fsa, "aux_labels", fsa.labels)
    rows = labels.tolist()
    rows = rows if isinstance(labels, k2.RaggedTensor) else [[word] for word in rows]
    return [[word for word in row if word > 0] for row in rows]


def sequences(fsa: Any, num_paths: int = _PATHS) -> dict[str, Any]:
    """Best words and total, and unique word sequences of random paths, each with its best score."""
    vector, words = k2.create_fsa_vec([fsa]), words_of(fsa)
    scores = fsa.scores.detach().double().tolist()
    rows = k2.random_paths(vector, use_double_scores=True, num_paths=num_paths).tolist()[0]
    best: dict[tuple[int, ...], float] = {}
    for path in rows:
        sequence = tuple(word for arc in path for word in words[arc])
        best[sequence] = max(best.get(sequence, -float("inf")), sum(scores[arc] for arc in path))
    first = k2.shortest_path(vector, use_double_scores=True)
    return {
        "best": [word for row in words_of(first) for word in row],
        "total": vector.get_tot_scores(True, False).item(),
        "random": [[list(sequence), score] for sequence, score in best.items()],
    }


def _equal(one: Any, other: Any) -> bool:
    return one is other is None or torch.equal(one, other)


def _refusal() -> str:
    """What is said of a lattice as `intersect_dense_pruned` leaves it, with dead ends."""
    raw = toys.decode(toys.hlg(0), seed=1, frames=60, beam=4.0)
    try:
        to_lattices(raw)
    except LatticeError as error:
        to_lattices(k2.connect(raw))
        return str(error)
    return ""


if __name__ == "__main__":
    main()
