"""Where torch is not installed: what serves works, everything else says what it needs."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from tests.deploy.files import ROOT

# What a process finds that has no torch.
PROGRAM = "import sys; sys.modules['torch'] = None; from service.cli import main; main()"


def secondpass(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The whole command line."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], text=True, capture_output=True, check=False
    )


@contextlib.contextmanager
def serving() -> Iterator[httpx.Client]:
    """A server of the bundled model."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "serve", "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        lines = (re.search(r"running on (http://[\w.:]+)", line) for line in process.stderr)
        found = next(found for found in lines if found)
        with httpx.Client(base_url=found[1], trust_env=False, timeout=60) as client:
            yield client
    finally:
        process.terminate()
        process.communicate()


def test_a_server_ranks_lists_and_lattices() -> None:
    lists = (ROOT / "deploy/sample_request.json").read_bytes()
    lattice = (ROOT / "deploy/sample_lattice.slf").read_bytes()
    with serving() as client:
        ranked = client.post(
            "/v1/rescore", content=lists, headers={"content-type": "application/json"}
        )
        searched = client.post(
            "/v1/rescore/lattice?lm_scale=10&word_bonus=-8",
            content=lattice,
            headers={"content-type": "text/x-htk-slf"},
        )
        models = client.get("/v1/models").json()["models"]
    text = "please send the report to the office before the end of"
    assert ranked.json()["results"][0]["hypotheses"][0]["text"] == f"{text} the week"
    assert searched.json()["results"][0]["hypotheses"][0]["text"] == f"{text} a week"
    assert models[0]["backend"].startswith("cpu/")


def test_texts_are_scored() -> None:
    done = secondpass("score", "the weather is nice today")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["words"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "recipe.yaml", "--data", "."], "`secondpass train` needs torch; pip install"),
        (["bench"], "`secondpass bench` needs torch; pip install"),
        (["serve", "--backend", "reference"], "torch is not installed; pip install"),
        (["serve", "--device", "cuda"], "torch is not installed; pip install"),
    ],
)
def test_what_needs_torch_says_so_in_one_line(arguments: list[str], message: str) -> None:
    done = secondpass(*arguments)
    assert done.returncode == 2
    *log, line = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not any("Traceback" in entry for entry in log)


def test_every_command_is_listed() -> None:
    assert "\n  train " in secondpass("--help").stdout
