"""Lists and lattices of a made-up decoder, rescored by the tiny table's models."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from quantized_lm.dev_set import select_speakers, tuning_set
from quantized_lm.errors import DataError, RecipeError
from quantized_lm.pipeline.reproduce.plan import Cell, Plan, make_plan
from quantized_lm.pipeline.reproduce.report import Report, make_report
from quantized_lm.pipeline.reproduce.results import Numbers
from quantized_lm.pipeline.reproduce.speech import (
    RESCORED,
    Answers,
    BestPaths,
    read_answers,
    read_paths,
    tuned_weights,
)
from quantized_lm.pipeline.reproduce.store import Store
from quantized_lm.pipeline.reproduce.task import LatticeSet, ListSet, Target
from quantized_lm.pipeline.reproduce.word_errors import HalfErrors, list_errors, path_agreement
from quantized_lm.pipeline.reproduce.writing import write_report
from quantized_lm.records import build
from quantized_lm.scored import read_scored
from quantized_lm.wer import pooled
from tests.tiny import NOUNS, sentence

from .conftest import TinyTable, only_rows, run_plan, tiny_task

LISTS = ListSet("made-up", "Made-up lists", "lists.jsonl.gz")
ORDERED = ListSet("ordered", "By rank alone", "lists.jsonl.gz", first_pass="order")
LATTICES = LatticeSet("graphs", "Made-up lattices", "graphs", lm_scale=2.0)
ROWS = ("float32", "qat-2bit")
SLF = """VERSION=1.0
UTTERANCE={name}
N=5 L=5
I=0 W=!NULL
I=1 W=the
I=2 W={first}
I=3 W={second}
I=4 W=sees
J=0 S=0 E=1 a=-1.0
J=1 S=1 E=2 a=-1.0
J=2 S=1 E=3 a=-1.1
J=3 S=2 E=4 a=-1.0
J=4 S=3 E=4 a=-1.0
"""


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lists in which a wrong word has a better score than the right one; two lattices."""
    folder = tmp_path_factory.mktemp("speech")
    rng = random.Random(5)
    with gzip.open(folder / "lists.jsonl.gz", "wt", encoding="utf-8") as handle:
        for number in range(40):
            text = sentence(rng)
            wrong = text.replace(" ", " the ", 1)
            hyps = [
                {"text": wrong, "am": -1.0},
                {"text": text, "am": -1.0 - 3.0 * rng.random()},
            ]
            record = {"utt": f"s{number % 8}-{number:02}", "ref": text, "hyps": hyps}
            handle.write(json.dumps(record) + "\n")
    (folder / "graphs").mkdir()
    for name in ("one", "two"):
        first, second = rng.sample(NOUNS, 2)
        content = SLF.format(name=name, first=first, second=second)
        (folder / "graphs" / f"{name}.slf").write_text(content)
    return folder


def make(text: Path, speech: Path | None, **changes: object) -> Plan:
    task = only_rows(tiny_task(), *ROWS)
    target = Target(2.0, 100.0, keeps_wer=True)
    fields = {"lists": (LISTS, ORDERED), "lattices": (LATTICES,), "targets": (target,), **changes}
    task = replace(task, **fields)  # type: ignore[arg-type]
    return make_plan(task, size="small", data=text, speech=speech, architectures=["transformer"])


@pytest.fixture(scope="module")
def table(text: Path, speech: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyTable:
    plan = make(text, speech)
    root = tmp_path_factory.mktemp("table")
    return TinyTable(plan, Store(root), run_plan(plan, root))


@pytest.fixture(scope="module")
def report(table: TinyTable) -> Report:
    return make_report(table.plan, table.store, now=datetime(2026, 11, 21, tzinfo=timezone.utc))


def cell_of(plan: Plan, row: str) -> Cell:
    (cell,) = [cell for cell in plan.cells if cell.row.name == row]
    return cell


def numbers_of(report: Report, row: str) -> Numbers:
    (cell,) = [cell for cell in report.cells if cell.row == row]
    assert cell.numbers is not None
    return cell.numbers


def test_the_learning_curve_has_word_errors_of_weights_kept_on_the_way(
    text: Path, speech: Path, tmp_path: Path
) -> None:
    task = tiny_task(train={"keep_every": 4})
    way = [
        {"name": f"after-{number}", "kind": "kept", "label": f"{number} / 3", "share": number / 3}
        for number in (1, 2)
    ]
    task = replace(task, rows=(*way, task.rows[0]), run_first=(), lists=(LISTS,))
    plan = make_plan(task, size="small", data=text, speech=speech, architectures=["transformer"])
    assert run_plan(plan, tmp_path) == {}
    report = make_report(plan, Store(tmp_path), now=datetime.now(timezone.utc))
    (curve,) = report.learning
    assert curve.kept_tokens == (curve.tokens[0], curve.tokens[2], curve.tokens[3])  # 4, 6, 8, 12
    rows = [numbers_of(report, name) for name in ("after-1", "after-2", "float32")]
    assert curve.wer == {"made-up": tuple(round(one.lists[0].every.wer, 5) for one in rows)}
    assert curve.first_pass_wer == {"made-up": round(rows[0].lists[0].every.first_pass_wer, 5)}
    first, second, last = (one.test.token_perplexity for one in rows)
    assert first > second > last
    assert rows[0].training_seconds <= rows[2].training_seconds
    assert rows[0].size_bytes == rows[2].size_bytes
    write_report(report, tmp_path / "report", pytest.fail)
    assert (tmp_path / "report" / "learning.png").stat().st_size > 10_000


@pytest.mark.parametrize("row", ROWS)
def test_word_errors_are_those_of_weights_tuned_on_even_speakers(
    table: TinyTable, report: Report, row: str
) -> None:
    assert table.failures == {}
    stage = cell_of(table.plan, row).own.rescored["made-up"]
    folder = table.store.folder(stage)
    utterances = list(read_scored(folder / RESCORED))
    even = select_speakers(utterances, "even", "^[^-]+")
    assert {one.id[:2] for one in even} == {"s0", "s2", "s4", "s6"}
    weights = tuned_weights(even)
    answers = read_answers(folder)
    odd = [one for one in utterances if int(one.id[1]) % 2]
    assert sum(answers.is_held_out) == len(odd) == 20
    pairs = []
    for one in odd:
        (scale,) = weights.lm_scales.values()
        totals = [
            (hypothesis.am or 0.0)
            + scale * next(iter(hypothesis.lm.values()))
            + weights.word_bonus * hypothesis.num_words
            for hypothesis in one.hypotheses
        ]
        pairs.append((one.ref or "", one.hypotheses[totals.index(max(totals))].text))
    errors = numbers_of(report, row).lists[0]
    assert errors.held_out.wer == pytest.approx(pooled(pairs).rate)
    assert errors.held_out.wer < errors.held_out.first_pass_wer
    assert errors.held_out.oracle_wer == 0
    assert errors.every.words == sum(len(text.split()) for text in answers.references)
    assert errors.formula == answers.formula


def test_by_rank_alone_the_decoder_s_scores_count_nothing(table: TinyTable) -> None:
    stage = cell_of(table.plan, "float32").own.rescored["ordered"]
    utterances = list(read_scored(table.store.folder(stage) / RESCORED))
    data = tuning_set(utterances)
    assert set(data.features[:, data.names.index("am")].tolist()) == {0.0, -0.6931471805599453}
    assert "extra[am]" in data.names  # kept, so that it could be given a weight


def test_the_float_model_differs_from_itself_in_nothing(report: Report) -> None:
    numbers = numbers_of(report, "float32")
    assert [one.name for one in numbers.lists] == ["made-up", "ordered"]
    for one in numbers.lists:
        assert (one.held_out.p, one.held_out.wer) == (1.0, one.held_out.float_wer)
    (paths,) = numbers.lattices
    assert (paths.lattices, paths.words, paths.differing, paths.degraded) == (2, 6, 0.0, 0)


def test_best_paths_are_the_model_s(table: TinyTable) -> None:
    cell = cell_of(table.plan, "qat-2bit")
    paths = read_paths(table.store.folder(cell.own.rescored["graphs"]))
    assert paths.utterances == ("one", "two")
    assert all(text.startswith("the ") and text.endswith(" sees") for text in paths.texts)


def test_the_page_shows_lists_lattices_and_targets(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path, pytest.fail)
    page = (tmp_path / "report.md").read_text()
    errors = numbers_of(report, "qat-2bit").lists[0]
    row = f"| 2 bits | {100 * errors.held_out.wer:.2f} | {errors.held_out.p:.2g}"
    for expected in (
        "### Made-up lists",
        "### By rank alone",
        "### Made-up lattices",
        "2 lattices without references",
        "no significantly higher word error rate",
        f"| {errors.formula} |",
        row,
    ):
        assert expected in page
    for name in ("made-up", "ordered"):
        assert (tmp_path / f"size-and-{name}-wer.png").read_bytes().startswith(b"\x89PNG")


def test_without_speech_there_are_no_word_errors(text: Path) -> None:
    plan = make(text, None)
    assert not plan.has_speech
    assert all(cell.own.rescored == {} for cell in plan.cells)


def test_a_changed_list_finds_nothing_old(text: Path, speech: Path, tmp_path: Path) -> None:
    for path in speech.rglob("*.*"):
        copy = tmp_path / path.relative_to(speech)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())

    def keys() -> dict[str, str]:
        cell = cell_of(make(text, tmp_path), "float32")
        return {name: stage.key for name, stage in cell.own.rescored.items()}

    before = keys()
    assert before == {
        n: s.key for n, s in cell_of(make(text, speech), "float32").own.rescored.items()
    }
    lines = gzip.decompress((tmp_path / "lists.jsonl.gz").read_bytes())
    (tmp_path / "lists.jsonl.gz").write_bytes(gzip.compress(lines[: lines.rindex(b"{")]))
    after = keys()
    assert after["made-up"] != before["made-up"]
    assert after["graphs"] == before["graphs"]


def test_what_is_missing_damaged_or_double_is_named(
    text: Path, speech: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: is not there; check --speech"):
        make(text, speech, lists=(replace(LISTS, file="nowhere.jsonl"),))
    with pytest.raises(RecipeError, match="lists 'made-up' is there twice"):
        make(text, speech, lists=(LISTS, LISTS))
    (tmp_path / "answers.json").write_text("{}")
    with pytest.raises(DataError, match="field .answers. is missing"):
        read_answers(tmp_path)
    with pytest.raises(DataError, match="no best paths can be read.*delete its folder"):
        read_paths(tmp_path)


def answers(*texts: str, references: tuple[str, ...]) -> Answers:
    count = len(texts)
    held_out = tuple(position % 2 == 1 for position in range(count))
    return Answers("1*am", held_out, references, texts, references, references)


def test_significantly_more_errors_are_told_from_chance() -> None:
    references = ("a b c d e f",) * 40
    wrong = [
        (reference, "a b c d e x", "x x c d e f")[i % 3] for i, reference in enumerate(references)
    ]
    good = answers(*references, references=references)
    bad = answers(*wrong, references=references)
    worse = list_errors("lists", bad, good).held_out
    assert worse.is_worse
    assert (worse.utterances, worse.words) == (20, 120)
    assert worse.wer == pytest.approx(pooled(zip(references[1::2], wrong[1::2], strict=True)).rate)
    better = list_errors("lists", good, bad).held_out
    assert (better.wer, better.p) == (0.0, worse.p)
    assert not better.is_worse
    assert not list_errors("lists", good, good).held_out.is_worse
    with pytest.raises(DataError, match="not of the same lists"):
        list_errors("lists", good, replace(good, references=("a", *references)))


@pytest.mark.parametrize(("lists", "is_worse"), [(5, False), (6, True), (40, True)])
def test_a_model_that_is_worse_in_every_segment_is_worse(lists: int, *, is_worse: bool) -> None:
    references = ("a b c",) * 2 * lists  # 2 ** -5 is below 0.05, 2 ** -4 is not
    good = answers(*references, references=references)
    bad = answers(*("a b x",) * 2 * lists, references=references)
    worse = list_errors("lists", bad, good).held_out
    assert (worse.z, worse.p, worse.mean) == (0.0, 2.0 ** (1 - lists), -1.0)
    assert worse.is_worse == is_worse
    assert not list_errors("lists", good, bad).held_out.is_worse
    assert not list_errors("lists", bad, bad).held_out.is_worse


def test_word_errors_of_an_earlier_report_still_load() -> None:
    fields = asdict(list_errors("lists", *(answers("a", "b", references=("a", "c")),) * 2).every)
    written = {name: fields[name] for name in fields if name not in ("mean", "has_variance")}
    read = build(HalfErrors, written | {"z": -3.0, "p": 0.01}, where="report", error=DataError)
    assert read.is_worse


def test_paths_that_differ_are_counted_in_words() -> None:
    of_float = BestPaths(("u", "v"), ("a b c", "d"), 0)
    of_model = BestPaths(("u", "v"), ("a x c", "d e"), 1)
    agreement = path_agreement("graphs", of_model, of_float)
    assert (agreement.words, agreement.differing, agreement.degraded) == (4, 0.5, 1)
    with pytest.raises(DataError, match="not of the same lattices"):
        path_agreement("graphs", of_model, replace(of_float, utterances=("v", "u")))


def test_a_target_on_words_is_missed_where_they_get_worse(
    report: Report, table: TinyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report.targets[0].passed == numbers_of(report, "qat-2bit").keeps_wer
    monkeypatch.setattr(
        "quantized_lm.pipeline.reproduce.results.Numbers.keeps_wer", property(lambda _: False)
    )
    worse = make_report(table.plan, table.store, now=datetime.now(timezone.utc))
    assert worse.targets[0].passed is False
