"""k2's tensors: what is read, what is refused with which pointer, and that no bit is lost."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats import LATTICE_FORMATS, ReadOptions
from quantized_lm.lattice.lattice import Lattice, Ragged

from .format_cases import exact, make_lattice, paths, small

Record = dict[str, Any]


def record(**changes: object) -> Record:
    """Words 3 4 or 5 4; labels are others."""
    return {
        "arcs": [[0, 1, 7, -1.5], [0, 1, 8, -2.5], [1, 2, 9, -0.125], [2, 3, -1, -0.25]],
        "aux_labels": [3, 5, 4, -1],
        "lm_scores": [-0.5, -0.25, 0.0, 0.0],
        **changes,
    }


def read(content: Record, **options: Any) -> Lattice:
    (lattice,) = LATTICE_FORMATS["k2-json"].read(
        json.dumps(content).encode(), ReadOptions(**options)
    )
    return lattice


def as_tensors(content: Record) -> dict[str, np.ndarray[Any, Any]]:
    """The same as int32 arcs with the bits of the scores, and columns."""
    arcs = np.array([row[:3] for row in content["arcs"]], np.int32)
    scores = np.array([row[3] for row in content["arcs"]], np.float32)
    return {
        "arcs": np.concatenate([arcs, scores.view(np.int32)[:, None]], axis=1),
        "aux_labels": np.array(content["aux_labels"], np.int32),
        "lm_scores": np.array(content["lm_scores"], np.float32),
    }


def as_pt(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def paths_of_ids(lattice: Lattice) -> list[list[int]]:
    return [lattice.words.row(arc).tolist() for arc in range(lattice.num_arcs)]


def test_am_is_the_score_without_the_lm_score_and_labels_are_carried() -> None:
    lattice = read(record())
    assert lattice.am.tolist() == [-1.0, -2.25, -0.125, -0.25]
    assert lattice.graph.tolist() == [-0.5, -0.25, 0.0, 0.0]
    assert lattice.words.values.tolist() == [3, 5, 4]
    labels = lattice.arc_attributes["labels"]
    assert not isinstance(labels, Ragged)
    assert labels.tolist() == [7, 8, 9, -1]
    assert labels.dtype == np.int32


def test_lm_scores_that_were_scaled_are_scaled_back() -> None:
    lattice = read(record(), lm_scores_scale=0.5)
    assert lattice.graph.tolist() == [-1.0, -0.5, 0.0, 0.0]
    assert lattice.am[0] == -1.0


def test_words_may_be_on_labels() -> None:
    lattice = read(record(), words_on="labels")
    assert lattice.words.values.tolist() == [7, 8, 9]
    again = json.loads(LATTICE_FORMATS["k2-json"].write([lattice]))
    assert again["arcs"] == record()["arcs"]
    assert again["aux_labels"] == record()["aux_labels"]


def test_words_on_aux_labels_need_aux_labels() -> None:
    content = record()
    del content["aux_labels"]
    with pytest.raises(LatticeError, match="there are none"):
        read(content, words_on="aux_labels")
    assert read(content).words.values.tolist() == [7, 8, 9]


def test_json_is_written_as_it_was_read() -> None:
    content = record(
        tokens=[1, 2, 3, 4],
        confidence=[0.5, 0.1, 0.25, 1.0],
        tags=["a", "b", "", "ü"],
        spans=[[1, 2], [], [3], []],
        sure=[True, False, True, True],
        symbols={"3": "a", "4": "b c", "5": "ü"},
        id="utt 1",
    )
    written = LATTICE_FORMATS["k2-json"].write([read({**content, "labels_version": 1})])
    assert json.loads(written) == content


def test_lists_may_be_k2s_row_splits_and_values() -> None:
    lists = {"row_splits": [0, 2, 2, 4, 5], "values": [3, 4, 0, 5, -1]}
    lattice = read(record(aux_labels=lists, spans={**lists, "values": [0.5, 1, 2, 3, 4]}))
    assert paths_of_ids(lattice) == [[3, 4], [], [5], []]
    spans = lattice.arc_attributes["spans"]
    assert isinstance(spans, Ragged)
    assert spans.row(2).tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("aux_labels", "3 5 4 -1"),
        ("aux_labels", {"row_splits": [0, 1, 2, 3, 4]}),
        ("aux_labels", {"row_splits": "0 1", "values": [3, 5, 4, -1]}),
        ("lm_scores", {"values": [-5, -5, 0, 0]}),
        ("lm_scores", {"row_splits": [0, 1, 2, 3, 4], "values": [-5, -5, 0, 0]}),
        ("lm_scores", 0),
        ("words_on", "labels"),
        ("lm_scores_scale", 0.6),
        ("symbol", {"1": "x"}),
    ],
)
def test_a_field_of_json_that_is_not_read_is_refused(name: str, value: object) -> None:
    with pytest.raises(LatticeError, match=name) as caught:
        read(record(**{name: value}))
    assert caught.value.pointer == f"/{name}"
    assert len(read(record(**{name: None})).src) == 4


@pytest.mark.parametrize("name", ["aux_labels", "lm_scores"])
@pytest.mark.parametrize("part", ["values", "row_splits", "row_splits1"])
def test_half_of_a_pair_of_tensors_is_refused(name: str, part: str) -> None:
    tensors = as_tensors(record())
    tensors[f"{name}.{part}"] = tensors.pop(name)
    with pytest.raises(LatticeError, match=f"{name}.{part} stands alone") as caught:
        LATTICE_FORMATS["k2-safetensors"].read(safetensors.numpy.save(tensors), ReadOptions())
    assert caught.value.pointer == f"/{name}.{part}"


@pytest.mark.parametrize("name", ["aux_labels", "lm_scores"])
def test_columns_of_a_pt_file_that_are_no_tensors_are_refused(name: str) -> None:
    tensors = {key: torch.from_numpy(array) for key, array in as_tensors(record()).items()}
    own = {**tensors, "texts": ["a", "b"], name: None}
    (lattice,) = LATTICE_FORMATS["k2-pt"].read(as_pt(own), ReadOptions())
    assert lattice.num_arcs == 4
    with pytest.raises(LatticeError, match=f"{name} is a list; need a tensor") as caught:
        LATTICE_FORMATS["k2-pt"].read(as_pt({**own, name: [[1], [2], [3], [-1]]}), ReadOptions())
    assert caught.value.pointer == f"/{name}"


def test_words_may_be_a_list_from_id_0() -> None:
    lattice = read(record(symbols=["<eps>", "a", "b", "c", "d", "e"]))
    assert lattice.symbols is not None
    assert [lattice.symbols[word] for word in lattice.words.values.tolist()] == ["c", "e", "d"]


def test_arcs_of_several_words_are_lists_and_minus_one_ends_the_last() -> None:
    lattice = read(record(aux_labels=[[3, 4], [], [0, 5], [6, -1]]))
    assert lattice.words.splits.tolist() == [0, 2, 2, 3, 4]
    assert lattice.words.values.tolist() == [3, 4, 5, 6]
    written = json.loads(LATTICE_FORMATS["k2-json"].write([lattice]))
    assert written["aux_labels"] == [[3, 4], [], [5], [6, -1]]


@pytest.mark.parametrize("name", ["k2-safetensors", "k2-pt", "k2-json", "k2-text"])
def test_every_bit_of_a_score_comes_back(name: str) -> None:
    bits = np.array(
        [0x80000000, 0x00000001, 0xC2F6E979, 0xFF7FFFFF, 0x7F7FFFFF, 0xFF800000], np.uint32
    )
    scores = bits.view(np.float32)
    arcs: list[tuple[int, int, list[int], float, float]] = [
        (at, at + 1, [], float(score), 0.0) for at, score in enumerate(scores)
    ]
    one = LATTICE_FORMATS[name]
    (lattice,) = one.read(one.write([make_lattice(arcs, symbols=None)]), ReadOptions())
    assert lattice.am.astype(np.float32).view(np.uint32).tolist() == bits.tolist()


def test_tensors_have_the_bits_that_k2_gives() -> None:
    tensors = as_tensors(record())
    content = safetensors.numpy.save(tensors)
    for name, data in (
        ("k2-safetensors", content),
        ("k2-pt", as_pt({k: torch.from_numpy(v) for k, v in tensors.items()})),
    ):
        (lattice,) = LATTICE_FORMATS[name].read(data, ReadOptions())
        assert paths_of_ids(lattice) == [[3], [5], [4], []]
        written = LATTICE_FORMATS["k2-safetensors"].write([lattice])
        again = safetensors.numpy.load(written)
        assert {key: value.tobytes() for key, value in again.items()} == {
            key: value.tobytes() for key, value in tensors.items()
        }


def test_lm_scores_that_are_all_zero_are_written_again() -> None:
    lattice = read(record(lm_scores=[0.0, 0.0, 0.0, 0.0]))
    assert "lm_scores" in json.loads(LATTICE_FORMATS["k2-json"].write([lattice]))
    without = record()
    del without["lm_scores"]
    assert "lm_scores" not in json.loads(LATTICE_FORMATS["k2-json"].write([read(without)]))


def test_words_on_the_last_arc_get_a_final_state_behind_them() -> None:
    lattice = make_lattice([(0, 1, [1], -1.0, 0.0)])
    written = json.loads(LATTICE_FORMATS["k2-json"].write([lattice]))
    assert written["arcs"] == [[0, 1, 1, -1], [1, 2, -1, 0]]


def test_several_lattices_are_an_fsa_vec() -> None:
    one, other = (
        small(),
        make_lattice([(0, 1, [1], -2.0, 0.0), (1, 2, [], 0.0, 0.0)], utterance="u2"),
    )
    tensors = safetensors.numpy.load(LATTICE_FORMATS["k2-safetensors"].write([one, other]))
    row = tensors["arcs"]
    assert row.dtype == np.int32
    assert row[:8].tolist() == [2, 0, 0, 4, 7, 0, 4, 6]
    assert row[8:11].tolist() == [0, 1, 1]
    assert row[11:12].view(np.float32)[0] == np.float32(-1.6)
    assert row[-8:-5].tolist() == [0, 1, 1]


def test_lattices_with_other_attributes_keep_those_that_all_have() -> None:
    one = small(kept=np.arange(4), lost=np.arange(4))
    other = small(kept=np.arange(4))
    name = LATTICE_FORMATS["k2-json"]
    assert name.drops([one, other]) == ["lost"]
    assert json.loads(name.write([one, other]))["kept"] == [0, 1, 2, 3] * 2


def test_json_leaves_out_attributes_that_are_not_finite_and_says_so() -> None:
    lattice = small(p=np.array([0.5, np.nan, 1.0, 1.0]))
    one = LATTICE_FORMATS["k2-json"]
    assert one.drops([lattice]) == ["p"]
    assert "p" not in json.loads(one.write([lattice]))


def test_tables_of_several_lattices_become_one() -> None:
    one = make_lattice([(0, 1, [1], 0.0, 0.0)], symbols={1: "a"})
    other = make_lattice([(0, 1, [1], 0.0, 0.0)], symbols={1: "b"}, utterance="u2")
    read_again = LATTICE_FORMATS["k2-json"].read(
        LATTICE_FORMATS["k2-json"].write([one, other]), ReadOptions()
    )
    assert [paths(lattice, exact) for lattice in read_again] == [[("a",)], [("b",)]]


def change(row: int, column: int, value: object) -> Callable[[Record], None]:
    def apply(content: Record) -> None:
        content["arcs"][row][column] = value

    return apply


@pytest.mark.parametrize(
    ("damage", "pointer", "message"),
    [
        (lambda c: c.update(arcs=[]), "/arcs", "no arcs"),
        (lambda c: c.pop("arcs"), "/arcs", "no list of arcs"),
        (change(2, 1, 1), "/arcs/2", "call k2.top_sort"),
        (change(2, 1, 0), "/arcs/2", "no cycle"),
        (lambda c: c["arcs"].reverse(), "/arcs/1", "sort arcs by source"),
        (change(0, 0, -1), "/arcs/0", "need 0 or more"),
        (change(2, 0, 0), "/arcs/0", "state 1, which no arc leaves; call k2.connect"),
        (change(3, 1, 2000000000), "/arcs/3", "too many for 4 arcs"),
        (change(3, 2, 0), "/arcs/3", "with label 0; need -1"),
        (change(1, 2, -1), "/arcs/1", "label -1, and does not end at the final state"),
        (change(1, 2, -2), "/arcs/1", "label -2"),
        (change(1, 3, "inf"), "/arcs/1", "score 'inf'"),
        (change(1, 3, None), "/arcs/1", "score None"),
        (change(1, 3, True), "/arcs/1", "score True"),
        (change(1, 3, 1e39), "/arcs/1", "too large for float32"),
        (change(1, 3, -1e39), "/arcs/1", "too large for float32"),
        (change(1, 3, 10**400), "/arcs/1", "score 1"),
        (change(1, 1, 1.0), "/arcs/1", "whole numbers"),
        (change(1, 1, 2**31), "/arcs/1", "whole numbers of 32 bits"),
        (lambda c: c["arcs"][2].pop(), "/arcs/2", r"need \[src, dst, label, score\]"),
        (lambda c: c["arcs"].insert(1, "abcd"), "/arcs/1", r"need \[src"),
        (lambda c: c["aux_labels"].append(1), "/aux_labels", "5 entries for 4 arcs"),
        (lambda c: c.update(aux_labels=[3, 5, 4, 4]), "/arcs/3", "aux_label 4; need -1"),
        (lambda c: c.update(aux_labels=[3, -1, 4, -1]), "/arcs/1", "aux_label -1"),
        (lambda c: c.update(aux_labels=[[3], [-1], [], []]), "/arcs/1", "word -1"),
        (lambda c: c.update(aux_labels=[[3], 4, [], []]), "/aux_labels/1", "among lists"),
        (lambda c: c.update(aux_labels=[0.5, 1, 2, -1]), "/aux_labels", "need int32"),
        (lambda c: c.update(aux_labels=[2**40, 1, 2, -1]), "/arcs/0", "aux_label"),
        (lambda c: c.update(lm_scores=[0.0, "x", 0.0, 0.0]), "/lm_scores/1", "lm_score 1"),
        (lambda c: c.update(lm_scores=[0.0, "-inf", 0.0, 0.0]), "/arcs/1", "-inf of both"),
        (lambda c: c.update(other=[1, 2]), "/other", "2 entries for 4 arcs"),
        (lambda c: c.update(other=[1, None, 2, 3]), "/other", "None; need numbers"),
        (lambda c: c.update(symbols={"3": "a"}), "/arcs/1", "word 5, which is not in"),
        (lambda c: c.update(symbols={"x": "a"}), "/symbols", "need"),
        (lambda c: c.update(symbols=3), "/symbols", "no object"),
        (lambda c: c.update(id=3), "/id", "no string"),
        (lambda c: c.update(lm_scores=[0.0, 1e39, 0.0, 0.0]), "/lm_scores/1", "lm_score 1"),
        (lambda c: c.update(other=[1.5, 10**400, 2, 3]), "/other", "number too large"),
        (lambda c: c.update(other=[1, 2**70, 2, 3]), "/other/1", "whole numbers of 64 bits"),
        (lambda c: c.update(arcs=[1, 0, 0, 4, 0, 1, 2, 3]), "/arcs", "FsaVec|behind the splits"),
    ],
)
def test_a_bad_lattice_is_refused_where_it_is_bad(
    damage: Callable[[Record], object], pointer: str, message: str
) -> None:
    content = record()
    damage(content)
    with pytest.raises(LatticeError, match=message) as caught:
        read(content)
    assert caught.value.pointer == pointer


def test_two_final_states_are_refused() -> None:
    arcs = [[0, 1, 1, 0.0], [0, 2, -1, 0.0], [1, 3, -1, 0.0]]
    with pytest.raises(LatticeError, match="a second final state beside 3") as caught:
        read({"arcs": arcs})
    assert caught.value.pointer == "/arcs/1"


def test_a_state_that_nothing_reaches_is_refused() -> None:
    arcs = [[0, 2, 1, 0.0], [1, 2, 1, 0.0], [2, 3, -1, 0.0]]
    with pytest.raises(LatticeError, match="which nothing reaches; call k2.connect") as caught:
        read({"arcs": arcs})
    assert caught.value.pointer == "/arcs/1"


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_json_that_is_no_json_is_refused(constant: str) -> None:
    with pytest.raises(LatticeError, match=constant):
        LATTICE_FORMATS["k2-json"].read(
            f'{{"arcs": [[0, 1, -1, {constant}]]}}'.encode(), ReadOptions()
        )


def test_deep_json_is_refused() -> None:
    with pytest.raises(LatticeError, match="no JSON"):
        LATTICE_FORMATS["k2-json"].read(b'{"arcs":' + b"[" * 1_000_000, ReadOptions())


def test_a_fault_in_an_fsa_vec_points_to_the_arc_in_the_whole() -> None:
    content = json.loads(LATTICE_FORMATS["k2-json"].write([small(), small()]))
    content["aux_labels"] = [0, 0, 0, -1, 0, -1, 0, -1]
    with pytest.raises(LatticeError, match="lattice 1: arc 5") as caught:
        LATTICE_FORMATS["k2-json"].read(json.dumps(content).encode(), ReadOptions())
    assert caught.value.pointer == "/arcs/5"


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"arcs": np.zeros((4, 4), np.int64)}, "/arcs"),
        ({"arcs": np.zeros((4, 3), np.int32)}, "/arcs"),
        ({"arcs": np.zeros(3, np.int32)}, "/arcs"),
        ({"lm_scores": np.zeros(3, np.float32)}, "/lm_scores"),
        ({"lm_scores": np.array([0, np.nan, 0, 0], np.float32)}, "/arcs/1"),
        ({"other": np.zeros(5)}, "/other"),
        (
            {"other.row_splits": np.array([0, 1, 2, 3, 9], np.int32), "other.values": np.zeros(3)},
            "/other",
        ),
        (
            {"other.row_splits": np.array([0, 3, 1, 3, 3], np.int32), "other.values": np.zeros(3)},
            "/other",
        ),
    ],
)
def test_tensors_of_another_dtype_or_length_are_refused(
    changes: dict[str, np.ndarray[Any, Any]], pointer: str
) -> None:
    tensors = {**as_tensors(record()), **changes}
    torches = {key: torch.from_numpy(value) for key, value in tensors.items()}
    if "other.values" in torches:
        ragged = {
            "row_splits": torches.pop("other.row_splits"),
            "values": torches.pop("other.values"),
        }
        torches["other"] = ragged["values"]
    for name, content in (
        ("k2-safetensors", safetensors.numpy.save(tensors)),
        ("k2-pt", as_pt(torches)),
    ):
        with pytest.raises(LatticeError) as caught:
            LATTICE_FORMATS[name].read(content, ReadOptions())
        assert caught.value.pointer == pointer


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800000])
def test_bits_of_nan_and_infinity_are_refused(bits: int) -> None:
    tensors = as_tensors(record())
    tensors["arcs"][2, 3] = bits
    with pytest.raises(LatticeError, match="need a number or -inf") as caught:
        LATTICE_FORMATS["k2-safetensors"].read(safetensors.numpy.save(tensors), ReadOptions())
    assert caught.value.pointer == "/arcs/2"
