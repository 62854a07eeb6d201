"""Lattices that go through this package within k2's process, and its k best beside k2's paths."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantized_lm.lattice.files import read_lattices
from quantized_lm.lattice.formats import ReadOptions
from quantized_lm.lattice.spoken import ArcWeights, speak
from quantized_lm.ops._cpu import WordPrefixes
from tests.fakes import fake_tokenizer

OPTIONS = ReadOptions(symbols={number: f"w{number}" for number in range(1, 100)})
WEIGHTS = ArcWeights(am_scale=1.0, graph_scale=1.0)
NAMES = ("ragged", "vector", "words", "bare", "tokens", "acceptor", "straight")
ENDLESS = 2**62
MOST = 20_000  # sequences; the lattices here have between one and millions


def best_of(path: Path) -> list[tuple[dict[tuple[int, ...], float], bool]]:
    """Of each lattice its best sequences by their words, best first, and whether they are all."""
    results = []
    for lattice in read_lattices(path, OPTIONS):
        spoken = speak(lattice, fake_tokenizer(), WEIGHTS)
        prefixes = WordPrefixes(spoken.src, spoken.dst, spoken.word, spoken.score)
        best = prefixes.best(MOST, ENDLESS).tolist()
        sequences = [
            tuple(int(spoken.words[number][1:]) for number in prefixes.words(prefix).tolist())
            for prefix in best
        ]
        scores = [prefixes.end_score(prefix) for prefix in best]
        assert len(set(sequences)) == len(sequences)
        results.append((dict(zip(sequences, scores, strict=True)), len(best) < MOST))
    return results


def test_importing_it_needs_no_torch_and_nothing_compiled() -> None:
    code = (
        "import sys, quantized_lm.lattice.k2_fsa, service.k2_client;"
        "heavy = {'torch', 'k2', 'fastapi', 'pydantic', 'tokenizers', 'quantized_lm.ops'};"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout == "set()\n"


def test_k2_imports_it_without_torch(found: dict[str, Any]) -> None:
    assert found["imports_are_light"] is True


@pytest.mark.parametrize("name", NAMES)
def test_k2_finds_the_same_in_what_comes_back(found: dict[str, Any], name: str) -> None:
    assert found["lattices"][name]["different"] == []


def test_dead_ends_of_a_pruned_search_are_refused_with_the_function_that_cuts_them(
    found: dict[str, Any],
) -> None:
    assert "call k2.connect" in found["refusal"]


@pytest.mark.parametrize("name", NAMES)
def test_the_best_sequence_is_that_of_k2s_shortest_path(
    saved: Path, found: dict[str, Any], name: str
) -> None:
    for (best, _), theirs in zip(
        best_of(saved / f"{name}.pt"), found["lattices"][name]["sequences"], strict=True
    ):
        words, score = next(iter(best.items()))
        assert list(words) == theirs["best"]
        assert score == pytest.approx(theirs["total"], abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_k_best_hold_what_random_paths_find_and_never_less(
    saved: Path, found: dict[str, Any], name: str
) -> None:
    for (best, is_all), theirs in zip(
        best_of(saved / f"{name}.pt"), found["lattices"][name]["sequences"], strict=True
    ):
        worst = min(best.values())
        sampled = {tuple(words): score for words, score in theirs["random"]}
        assert len(sampled) <= len(best)
        for words, score in sampled.items():
            if is_all or score > worst + 1e-9:
                assert words in best
            if words in best:
                assert score <= best[words] + 1e-9


def test_random_paths_miss_sequences_that_the_k_best_have(
    saved: Path, found: dict[str, Any]
) -> None:
    ((best, is_all),) = best_of(saved / "bare.pt")
    sampled = {tuple(words) for words, _ in found["lattices"]["bare"]["sequences"][0]["random"]}
    assert is_all
    assert sampled < set(best)
    assert list(itertools.islice(best.values(), 1)) == [max(best.values())]
    assert np.isfinite(list(best.values())).all()
