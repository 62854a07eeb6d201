"""`inspect` on a lattice: its size, and drawings with and without Graphviz."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quantized_lm.lattice.dot import Drawing, best_path, dot_text
from quantized_lm.lattice.files import write_lattices
from tests.quantized_lm.lattice.format_cases import SYMBOLS, make_lattice, small
from tests.quantized_lm.lattice.random_lattices import paths, random_lattice

from .conftest import Command


@pytest.fixture
def slf(tmp_path: Path) -> Path:
    """A small lattice."""
    path = tmp_path / "u1.slf"
    write_lattices(path, [small()])
    return path


class ExecutableNotFoundError(Exception):
    """As graphviz raises it."""


def graphviz(*, has_dot: bool) -> ModuleType:
    """Stands for the package."""

    class Source:
        def __init__(self, text: str) -> None:
            self.text = text

        def pipe(self, *, format: str) -> bytes:  # noqa: A002 - the package's name
            if not has_dot:
                raise ExecutableNotFoundError
            return f"{format}: {self.text[:15]}".encode()

    module: Any = SimpleNamespace(Source=Source, ExecutableNotFound=ExecutableNotFoundError)
    return module  # type: ignore[no-any-return]


def provide(monkeypatch: pytest.MonkeyPatch, module: ModuleType | None) -> None:
    """Let this be what `import graphviz` finds; None: nothing."""

    def import_module(name: str) -> ModuleType:
        if module is None:
            raise ImportError(name)
        return module

    monkeypatch.setattr(importlib, "import_module", import_module)


def test_size_and_scores_are_shown(run: Command, slf: Path) -> None:
    result = run("inspect", slf)
    assert result.exit_code == 0, result.output
    for line in ("utterance        u1", "states           4", "arcs             4"):
        assert line in result.stdout
    assert "am               -2.25 to 0.3 nats" in result.stdout


def test_dot_needs_nothing_and_has_the_lattice_before_and_after(run: Command, slf: Path) -> None:
    target = slf.with_suffix(".dot")
    assert run("inspect", slf, "--plot", target).exit_code == 0
    alone = target.read_text()
    assert alone.count("->") == 4
    assert '[label="hello\\n-1.60", penwidth=2.5]' in alone
    assert '[label="it\'s\\n-2.25"]' in alone
    result = run("inspect", slf, "--plot", target, "--model", "tiny")
    assert result.exit_code == 0, result.output
    both = target.read_text()
    assert "as it came" in both
    assert "rescored by tiny" in both
    assert both.count("->") > 4


def test_pictures_are_made_by_graphviz(
    run: Command, slf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provide(monkeypatch, graphviz(has_dot=True))
    target = slf.with_suffix(".svg")
    assert run("inspect", slf, "--plot", target).exit_code == 0
    assert target.read_text() == "svg: digraph lattice"


@pytest.mark.parametrize("module", [None, graphviz(has_dot=False)])
def test_without_graphviz_one_line_says_what_to_install(
    run: Command, slf: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType | None
) -> None:
    provide(monkeypatch, module)
    target = slf.with_suffix(".svg")
    result = run("inspect", slf, "--plot", target)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: drawing needs Graphviz: install it")
    assert not target.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{slf}", "--plot", "{slf}.bmp"], "no drawing ends so"),
        (["{slf}", "--plot", "/nowhere/x.dot"], "cannot be written"),
        (["--plot", "x.dot"], "is no lattice by its name"),
        (["{slf}", "--format", "mp3"], "lattice format is 'mp3'"),
        (["{ark}", "--plot", "{slf}.dot"], "has 2 lattices; a drawing is of one"),
        (["{ark}", "--max-arcs", "1"], "arcs; need at most 1"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    run: Command, slf: Path, arguments: list[str], message: str
) -> None:
    archive = slf.with_name("two.ark")
    write_lattices(archive, [small(), make_lattice([(0, 1, [1], 0.0, 0.0)], utterance="u2")])
    named = [one.format(slf=slf, ark=archive) for one in arguments]
    result = run("inspect", *named)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json"], "--json needs a model folder, and PATH is lattices"),
        (["--verify"], "--verify needs a model folder"),
        (["--model", "tiny"], "--model needs --plot"),
        (["--device", "cpu"], "--device needs --model"),
        (["--plot", "x.dot", "--device", "cpu"], "--device needs --model"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    run: Command, slf: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(slf.parent)
    result = run("inspect", slf, *options)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    drawn = run("inspect", slf, "--plot", "x.dot", "--model", "tiny", "--device", "cpu")
    assert drawn.exit_code == 0


def test_a_drawing_never_takes_the_place_of_what_is_read(run: Command, slf: Path) -> None:
    source, words = slf.with_name("ok.dot"), slf.with_name("words.dot")
    content = slf.rename(source).read_text()
    words.write_text("<eps> 0\nhello 1\n")
    for lost in (source, words):
        result = run("inspect", source, "--format", "htk", "--symbols", words, "--plot", lost)
        assert result.exit_code == 2
        assert result.stderr == (
            f"error: {lost}: is what is read, and would be lost; need another name\n"
        )
    assert source.read_text() == content


def test_a_file_of_neither_kind_is_told_how_lattices_are_named(run: Command, slf: Path) -> None:
    result = run("inspect", slf.rename(slf.with_name("lat.1")))
    assert (result.exit_code, "--format says in which one it is" in result.stderr) == (2, True)


def test_a_large_lattice_is_not_drawn(run: Command, slf: Path) -> None:
    arcs: list[tuple[int, int, list[int], float, float]] = [(0, 1, [1], 0.0, 0.0)] * 201
    write_lattices(slf, [make_lattice(arcs)])
    result = run("inspect", slf, "--plot", slf.with_suffix(".dot"))
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith("201 arcs; a drawing takes at most 200")


def test_words_are_quoted_and_ids_stand_for_unknown_ones() -> None:
    lattice = make_lattice([(0, 1, [3], 0.0, -np.inf), (0, 1, [], 1.0, 0.0)], symbols=SYMBOLS)
    assert 'label="say \\"so\\"\\n-inf"' in dot_text([Drawing('a "b" \\', lattice)])
    ids = make_lattice([(0, 1, [3], 0.0, 0.0)], symbols=None)
    assert 'label="3\\n0.00"' in dot_text([Drawing("", ids)])


def test_the_best_path_is_the_best_of_all_paths() -> None:
    for seed in range(40):
        lattice = random_lattice(seed)
        score = lattice.am + lattice.graph
        best = max(float(score[arcs].sum()) for arcs in paths(lattice))
        assert float(score[best_path(lattice)].sum()) == pytest.approx(best)
