"""`rescore`: the same numbers as the library, whole files only, faults on one line."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantized_lm import list_scoring
from quantized_lm.cli import rescore
from quantized_lm.combine import Weights
from quantized_lm.errors import DataError
from quantized_lm.list_scoring import rescore_utterances
from quantized_lm.nbest import Hypothesis, Utterance, read_utterances
from quantized_lm.scored import read_scored
from quantized_lm.scoring import ScoreRequest, score_lists
from tests.fakes import TableModel, fake_loaded

from .conftest import Command


def test_output_has_every_score_and_the_new_order(run: Command, lists: Path) -> None:
    target = lists.with_name("out.jsonl.gz")
    result = run("rescore", lists, target, "--lm-scale", "2", "--word-bonus", "0.5")
    assert result.exit_code == 0, result.output
    assert "1*am + 2*lm[tiny] + 0.5*words" in result.stderr
    assert result.stdout == ""
    records = [json.loads(line) for line in gzip.decompress(target.read_bytes()).splitlines()]
    assert [record["id"] for record in records] == [
        utterance.id for utterance in read_utterances(lists)
    ]
    loaded = fake_loaded("tiny")
    for record in records:
        assert record["ref"] == "the cat sat"
        texts = tuple(entry["text"] for entry in record["hypotheses"])
        scores = score_lists([ScoreRequest(texts)], loaded)[0].scores
        for entry, score in zip(record["hypotheses"], scores, strict=True):
            parts = entry["components"]
            assert parts["lm"] == {"tiny": score.log_prob}
            assert entry["score"] == parts["am"] + 2 * score.log_prob + 0.5 * entry["num_words"]
            assert parts["extra"]["lm"] in {-2.0, -3.0, -9.0}
        ordered = [entry["score"] for entry in record["hypotheses"]]
        assert ordered == sorted(ordered, reverse=True)


def test_first_pass_and_graph_scale_choose_the_fields(run: Command, lists: Path) -> None:
    target = lists.with_name("out.jsonl")
    result = run("rescore", lists, target, "--first-pass", "am+lm", "--graph-scale", "8")
    assert result.exit_code == 0
    first = next(read_scored(target)).hypotheses[0]
    assert (first.am, first.graph, first.extra) == (-1.0, -2.0, {})
    assert "1*am + 8*graph + 0.5*lm[tiny]" in result.stderr


def test_batches_do_not_change_a_number(lists: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TableModel()
    loaded = fake_loaded("tiny", model)
    together = list(rescore_utterances(read_utterances(lists), loaded, Weights()))
    assert model.batch_sizes == [6]
    monkeypatch.setattr(list_scoring, "_BATCH_TOKENS", 1)
    assert list(rescore_utterances(read_utterances(lists), loaded, Weights())) == together
    assert model.batch_sizes == [6, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the " * 200, "utterance 'u': /hypotheses/0/text: text has"),
        ("the", "utterance 'u': /hypotheses/0/am_score: hypothesis 0 has no am_score"),
    ],
)
def test_a_list_that_cannot_be_ranked_is_named(text: str, message: str) -> None:
    utterance = Utterance("u", (Hypothesis(text),))
    with pytest.raises(DataError, match=message):
        list(rescore_utterances([utterance], fake_loaded("tiny"), Weights()))


def test_lists_that_cannot_be_ranked_may_keep_the_decoders_order(run: Command, lists: Path) -> None:
    hyps = [{"text": "the " * 200, "am": -2.0, "lm": -1.0}, {"text": "cat", "am": -1.0, "lm": -1.0}]
    long = {"utt": "long", "ref": "cat", "hyps": hyps}
    short = {"utt": "no-score", "ref": "cat", "hyps": [{"text": "cat"}]}
    lines = lists.read_text().splitlines()
    lists.write_text("\n".join([json.dumps(long), *lines, json.dumps(short)]) + "\n")
    target = lists.with_name("out.jsonl")
    options = ("rescore", lists, target, "--lm-scale", "2")
    assert run(*options).exit_code == 2
    assert not target.exists()
    assert "--on-error is 'go'; need one of" in run(*options, "--on-error", "go").stderr
    result = run(*options, "--on-error", "first-pass")
    assert result.exit_code == 0
    assert "2 utterances could not be ranked and keep the decoder's order; the first: " in (
        result.stderr
    )
    first, *rest, last = (json.loads(line) for line in target.read_text().splitlines())
    assert [entry["input_rank"] for entry in first["hypotheses"]] == [1, 2]
    assert (first["degraded"], last["degraded"]) == (["failed"], ["failed"])
    assert first["detail"].startswith("utterance 'long': /hypotheses/0/text: text has")
    alone = lists.with_name("alone.jsonl")
    lists.write_text("\n".join(lines) + "\n")
    assert run("rescore", lists, alone, "--lm-scale", "2").exit_code == 0
    assert rest == [json.loads(line) for line in alone.read_text().splitlines()]
    # What has no scores is no part of a tuning set, and is counted as the decoder had it.
    weights = lists.with_name("w.json")
    tuned = run("tune", target, weights)
    assert json.loads(tuned.stdout.splitlines()[-1])["utterances"] == len(lines)
    assert "2 utterances could not be ranked" in tuned.stderr
    evaluated = run("evaluate", target, "--weights", weights)
    systems = json.loads(evaluated.stdout.splitlines()[-1])["sets"][str(target)]["systems"]
    assert systems["rescored"]["utterances"] == len(lines) + 2
    assert systems["first_pass"]["errors"] >= 200


def test_a_bad_line_is_found_before_anything_is_scored(run: Command, lists: Path) -> None:
    with lists.open("a") as handle:
        handle.write('{"utt": "x", "hyps": [{"text": "a", "am": "no"}]}\n')
    target = lists.with_name("out.jsonl")
    result = run("rescore", lists, target)
    assert result.exit_code == 2
    assert result.stderr == f"error: {lists}:7: /hyps/0/am: is 'no'; need a number\n"
    assert not target.exists()


@pytest.mark.parametrize(
    ("hypothesis", "message"),
    [
        ({"text": "the " * 200, "am": -1.0}, "/hypotheses/0/text: text has 200 tokens; tiny takes"),
        (
            {"text": "the", "total": -1.0},
            "send the score or set the weight to 0; --first-pass says which fields",
        ),
    ],
)
def test_a_list_that_cannot_be_ranked_is_found_before_anything_is_scored(
    run: Command,
    lists: Path,
    monkeypatch: pytest.MonkeyPatch,
    hypothesis: dict[str, object],
    message: str,
) -> None:
    monkeypatch.setattr(list_scoring, "run_batch", lambda *_: pytest.fail("scored"))
    with lists.open("a") as handle:
        handle.write(json.dumps({"utt": "x", "hyps": [hypothesis]}) + "\n")
    result = run("rescore", lists, lists.with_name("out.jsonl"))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: utterance 'x': ")
    assert message in result.stderr
    assert "--on-error first-pass keeps" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "nemo"], "error: /alpha: preset 'nemo' got no 'alpha'"),
        (["--preset", "kaldi:weight"], "need PARAMETER=NUMBER"),
        (["--preset", "kaldi", "--weights", "w.json"], "give one of them"),
        (["--weights", "absent.json"], "no weights can be read"),
        (["--lm-scale", "nan"], "error: /lm_scales/tiny: weight is nan"),
    ],
)
def test_unusable_weights_end_with_code_2(
    run: Command, lists: Path, options: list[str], message: str
) -> None:
    result = run("rescore", lists, lists.with_name("out.jsonl"), *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_folder_for_out_is_refused_before_any_work(run: Command, lists: Path) -> None:
    for command, source in (("rescore", lists.with_name("absent")), ("tune", lists)):
        result = run(command, source, lists.parent)
        assert result.exit_code == 2
        assert result.stderr == f"error: {lists.parent}: is a folder; need the name of a file\n"


def test_what_is_read_is_never_written_over(run: Command, lists: Path, scored: Path) -> None:
    link = lists.with_name("link.jsonl")
    link.symlink_to(lists)
    weights = lists.with_name("weights.json")
    weights.write_text('{"weights": {"lm_scales": {"tiny": 0.75}}}')
    for arguments in (
        ("rescore", lists, link),
        ("tune", scored, scored),
        ("rescore", lists, weights, "--weights", weights),
    ):
        read = arguments[-1] if "--weights" in arguments else arguments[1]
        before = Path(read).read_bytes()
        result = run(*arguments)
        assert (result.exit_code, "is what is read" in result.stderr) == (2, True)
        assert Path(read).read_bytes() == before


def test_sigterm_leaves_nothing_behind(
    run: Command, lists: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminated(*_: object) -> Iterator[dict[str, object]]:
        yield {"changed": False, "degraded": []}
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # or a failure would end all tests
    try:
        monkeypatch.setattr(rescore, "engine_by_name", lambda *_: terminated)
        result = run("rescore", lists, lists.with_name("out.jsonl"))
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert result.exit_code == 130
    assert list(lists.parent.iterdir()) == [lists]


def test_presets_and_weights_files_rank_too(run: Command, lists: Path) -> None:
    target = lists.with_name("out.jsonl")
    result = run("rescore", lists, target, "--preset", "nemo:alpha=0.5,beta=0.25")
    assert "1*am + 0.5*lm[tiny] + 0.25*chars" in result.stderr
    weights = lists.with_name("weights.json")
    weights.write_text('{"weights": {"lm_scales": {"tiny": 0.75}}}')
    result = run("rescore", lists, target, "--weights", weights, "--am-scale", "2")
    assert "2*am + 0.75*lm[tiny]" in result.stderr


def test_help_shows_worked_examples(run: Command) -> None:
    result = run("rescore", "--help")
    assert "secondpass rescore dev.jsonl.gz dev.rescored.jsonl.gz" in result.stdout


def test_an_engine_has_to_be_known_installed_and_alone(run: Command, lists: Path) -> None:
    target = lists.with_name("out.jsonl")
    for more, message in {
        ("--engine", "spark"): "--engine is 'spark'; need one of local, ray",
        ("--engine", "ray", "--url", "http://127.0.0.1:1"): "got --url and --engine ray",
    }.items():
        result = run("rescore", lists, target, *more)
        assert result.exit_code == 2
        assert message in result.stderr
    if importlib.util.find_spec("ray") is None:
        result = run("rescore", lists, target, "--engine", "ray")
        assert result.exit_code == 2
        assert "need the extra secondpass[ray]" in result.stderr
    assert not target.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n-best", "1"], "--n-best needs lattices, and IN is none by its name: give --format"),
        (["--lattice-out", "out"], "--lattice-out needs lattices"),
        (["--symbols", "absent"], "--symbols needs lattices"),
        (["--order", "1"], "--order needs lattices"),
        (["--seeds", "1"], "--seeds needs lattices"),
        (["--workers", "2"], "--workers needs --engine ray"),
        (["--url", "http://127.0.0.1:1", "--device", "cpu"], "--device needs a model on this"),
        (["--url", "http://127.0.0.1:1", "--threads", "1"], "--threads needs a model on this"),
        (["--api-key", "sp_1"], "--api-key needs --url"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    run: Command, lists: Path, options: list[str], message: str
) -> None:
    result = run("rescore", lists, lists.with_name("out.jsonl"), *options)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")
    assert len(result.stderr.splitlines()) == 1


def test_first_pass_needs_a_line_whose_fields_it_can_choose(run: Command, lists: Path) -> None:
    source, target = lists.with_name("service.jsonl"), lists.with_name("out.jsonl")
    line = '{"id": "u", "hypotheses": [{"text": "the cat", "am_score": -1}]}\n'
    source.write_text(line)
    result = run("rescore", source, target, "--first-pass", "total")
    assert result.exit_code == 2
    assert f"chooses among fields of utt/ref/hyps lines, and {source} has none" in result.stderr
    assert run("rescore", source, target, "--first-pass", "order").exit_code == 0
    source.write_text(line + lists.read_text())
    assert run("rescore", source, target, "--first-pass", "am+lm").exit_code == 0
