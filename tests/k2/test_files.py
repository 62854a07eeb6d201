"""Files between real k2 and this package, both ways."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantized_lm.lattice.files import read_lattices
from quantized_lm.lattice.formats import LATTICE_FORMATS, ReadOptions
from quantized_lm.lattice.lattice import Lattice, Ragged
from tests.k2.conftest import RunK2

ONE = ("ragged", "words", "bare", "tokens", "acceptor")
ALL = (*ONE, "vector", "straight")
K2_FORMATS = [one for one in LATTICE_FORMATS.values() if one.name.startswith("k2-")]


def columns_of(lattices: list[Lattice]) -> dict[str, Any]:
    """What k2 says of arcs, of several lattices in a row: bits of float32, and words."""
    total = np.concatenate([one.am + one.graph for one in lattices])
    graph = np.concatenate([one.graph for one in lattices])
    ends = np.concatenate([np.stack([one.src, one.dst], axis=1) for one in lattices])
    words = [
        one.words.values[begin:end].tolist()
        for one in lattices
        for begin, end in pairwise(one.words.splits.tolist())
    ]
    return {"ends": ends.tolist(), "scores": bits(total), "graph": bits(graph), "words": words}


def bits(values: NDArray[np.float64]) -> list[int]:
    single = values.astype(np.float32)
    assert (single == values).all()
    bits: list[int] = single.view(np.int32).tolist()
    return bits


def facts_of(folder: Path, name: str) -> dict[str, Any]:
    """The same as k2 wrote it down. An FsaVec's arcs are behind its splits of states and arcs."""
    facts = json.loads((folder / f"{name}.facts.json").read_text())
    arcs = facts["arcs"]
    arcs = np.array(arcs if isinstance(arcs[0], list) else arcs[2 * arcs[0] + 4 :]).reshape(-1, 4)
    labels = [[label] if label > 0 else [] for label in arcs[:, 2].tolist()]
    return {
        "ends": arcs[:, :2].tolist(),
        "scores": arcs[:, 3].tolist(),
        "graph": facts.get("lm_scores", [0] * len(arcs)),
        "words": facts.get("aux_labels", labels),
    }


@pytest.mark.parametrize("name", ALL)
def test_what_k2_saved_is_read_bit_for_bit(saved: Path, name: str) -> None:
    lattices = read_lattices(saved / f"{name}.pt")
    assert columns_of(lattices) == facts_of(saved, name)
    facts = json.loads((saved / f"{name}.facts.json").read_text())
    for column in facts.keys() - {"arcs", "aux_labels", "lm_scores"}:
        carried = [one.arc_attributes[column] for one in lattices]
        assert not any(isinstance(one, Ragged) for one in carried)
        assert np.concatenate(carried).view(np.int32).tolist() == facts[column]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ONE)
def test_text_that_k2_printed_is_read_to_the_digits_that_are_in_it(saved: Path, name: str) -> None:
    (lattice,) = read_lattices(saved / f"{name}.k2.txt")
    facts = facts_of(saved, name)
    columns = columns_of([lattice])
    assert columns["ends"] == facts["ends"]
    assert columns["words"] == facts["words"]
    exact = np.array(facts["scores"], np.int32).view(np.float32)
    np.testing.assert_allclose(lattice.am, exact, rtol=5e-6)


def test_k2_reads_what_is_written_in_each_of_its_formats(saved: Path, run_k2: RunK2) -> None:
    ours = saved / "ours"
    ours.mkdir()
    written = set()
    for name in ALL:
        lattices = read_lattices(saved / f"{name}.pt", ReadOptions())
        for one in K2_FORMATS:
            if one.holds_many or len(lattices) == 1:
                path = ours / f"{name}{one.suffixes[0]}"
                path.write_bytes(one.write(lattices))
                written.add(path.name)
    wrong = run_k2("files", "check", saved)
    assert wrong == {name: [] for name in written}


def test_k2_notices_one_bit(saved: Path, run_k2: RunK2, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    ours.mkdir()
    (tmp_path / "bare.facts.json").write_bytes((saved / "bare.facts.json").read_bytes())
    (lattice,) = read_lattices(saved / "bare.pt")
    lattice.am[7] = np.nextafter(np.float32(lattice.am[7]), np.float32(0))
    (ours / "bare.safetensors").write_bytes(LATTICE_FORMATS["k2-safetensors"].write([lattice]))
    assert run_k2("files", "check", tmp_path) == {"bare.safetensors": ["arcs"]}
