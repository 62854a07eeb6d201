"""The examples in deploy/examples on their own samples, with the service and without."""

from __future__ import annotations

import functools
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from quantized_lm.nbest import read_utterances
from service.client import Client
from tests.deploy.files import DEPLOY, script
from tests.fakes import spelling_loaded
from tests.service.client.driving import ThroughPortal
from tests.service.serving import running

EXAMPLES = DEPLOY / "examples"
ARGUMENTS = {
    "from_sherpa_onnx": ["sherpa_onnx/decoded.log"],
    "from_icefall": ["icefall", "icefall/words.txt"],
    "from_kaldi": ["kaldi"],
}
OWN = {
    "from_sherpa_onnx": {
        "0001.wav": "they were going to see the whether",
        "0002.wav": "please right a letter to your mother",
        "0003.wav": "nothing else",
    },
    "from_icefall": {
        "spk1-utt1-0": "they were going to see the whether",
        "spk1-utt2-0": "please right a letter to your mother",
    },
    "from_kaldi": {
        "spk1-utt1": "they were going to see the whether",
        "spk1-utt2": "please right a letter to your mother",
    },
}
Run = Callable[[str, httpx.BaseTransport], list[str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs an example on its sample, and gives the lines it prints."""

    def lines(name: str, transport: httpx.BaseTransport) -> list[str]:
        module = script(EXAMPLES / f"{name}.py")
        monkeypatch.setattr(
            module, "Client", functools.partial(Client, transport=lambda: transport)
        )
        module.main(*(str(EXAMPLES / argument) for argument in ARGUMENTS[name]), "http://test")
        return capsys.readouterr().out.splitlines()

    return lines


@pytest.fixture(scope="module")
def served() -> Iterator[ThroughPortal]:
    """An app whose model takes real sentences."""
    app = running(spelling_loaded())
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(app) as started:
        yield ThroughPortal(portal, started[1])


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_service_answers_for_each_utterance(run: Run, name: str, served: ThroughPortal) -> None:
    printed = dict(line.split(" ", 1) for line in run(name, served))
    assert printed.keys() == OWN[name].keys()
    assert not any("(" in text for text in printed.values())


@pytest.mark.parametrize("name", ARGUMENTS)
def test_without_it_the_decoders_text_stands(run: Run, name: str) -> None:
    def away(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("away")

    printed = dict(line.split(" ", 1) for line in run(name, httpx.MockTransport(away)))
    assert {key: text.split("  (")[0] for key, text in printed.items()} == OWN[name]


def test_a_cut_without_a_lattice_keeps_the_decoders_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(EXAMPLES / "icefall", tmp_path / "icefall")
    for lattice in (tmp_path / "icefall").glob("*.k2.txt"):
        lattice.unlink()
    script(EXAMPLES / "from_icefall.py").main(
        str(tmp_path / "icefall"), str(EXAMPLES / "icefall" / "words.txt")
    )
    expected = [f"{key} {own}  (no lattice)" for key, own in OWN["from_icefall"].items()]
    assert capsys.readouterr().out.splitlines() == expected


def test_kaldis_costs_change_their_sign() -> None:
    lists, weights = script(EXAMPLES / "from_kaldi.py").read_lists(EXAMPLES / "kaldi")
    first = lists[0]["hypotheses"][0]
    assert (first["am_score"], first["graph_score"]) == (-3120.4, -31.2)
    assert first["extra"]["old_lm"] == pytest.approx(-(31.2 - 0.31 * 31.2), abs=1e-3)
    assert weights["preset"] == "kaldi"
    without = script(EXAMPLES / "from_kaldi.py").weights_for(knows_old_lm=False)
    assert (without["graph_scale"], without["word_bonus"]) == (0.5, 0.0)


def test_the_lines_for_tune_are_lists_with_what_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (EXAMPLES / "README.md").read_text("utf-8")
    code = re.search(r"```python\n(import json\n.*?)```", page, re.DOTALL)
    assert code
    shutil.copytree(EXAMPLES / "kaldi", tmp_path / "kaldi")
    text = tmp_path / "data" / "dev" / "text"
    text.parent.mkdir(parents=True)
    text.write_text("".join(f"{key} {own.upper()}\n" for key, own in OWN["from_kaldi"].items()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "from_kaldi", script(EXAMPLES / "from_kaldi.py"))
    exec(code[1], {})
    lists = {one.id: one for one in read_utterances(Path("dev.jsonl"))}
    assert {key: one.ref for key, one in lists.items()} == OWN["from_kaldi"]
    assert lists["spk1-utt1"].hypotheses[0].extra.keys() == {"old_lm"}


def test_sherpa_onnxs_log_is_read_between_its_other_lines() -> None:
    lines = (EXAMPLES / "sherpa_onnx" / "decoded.log").read_text("utf-8").splitlines()
    lists = list(script(EXAMPLES / "from_sherpa_onnx.py").read_lists(lines))
    assert [(one["id"], len(one["hypotheses"])) for one in lists] == [
        ("0001.wav", 3),
        ("0002.wav", 3),
        ("0003.wav", 1),
    ]
    assert lists[0]["hypotheses"][1]["am_score"] == -6.31


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_example_needs_no_decoder_and_no_torch(name: str) -> None:
    before = set(sys.modules)
    script(EXAMPLES / f"{name}.py")
    new = {module.partition(".")[0] for module in set(sys.modules) - before}
    assert not new & {"torch", "k2", "sherpa_onnx", "kaldifst"}
