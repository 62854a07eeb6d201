"""Files of `torch.save(fsa.as_dict())`: k2's lists of words, and pickles that are refused."""

from __future__ import annotations

import io
import pickle
import time
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
import torch

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats import LATTICE_FORMATS, ReadOptions
from quantized_lm.lattice.formats.k2_pt import RaggedState, SymbolsState
from quantized_lm.lattice.formats.torch_zip import write_record

from .format_cases import small
from .test_format_k2 import as_pt, as_tensors, paths_of_ids, read, record


def test_lists_of_words_go_through_the_name_of_k2s_class_alone() -> None:
    lattice = read(record(aux_labels=[[3, 4], [], [5], [-1]]))
    content = LATTICE_FORMATS["k2-pt"].write([lattice])
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        assert b"c_k2.ragged\nRaggedTensor\n" in archive.read(name)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(content), weights_only=True)
    (again,) = LATTICE_FORMATS["k2-pt"].read(content, ReadOptions())
    assert paths_of_ids(again) == paths_of_ids(lattice)


def test_the_same_lattice_is_the_same_bytes_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    content = LATTICE_FORMATS["k2-pt"].write([small()])
    later = time.localtime(time.time() + 3600.0)
    monkeypatch.setattr(time, "localtime", lambda *_: later)
    assert LATTICE_FORMATS["k2-pt"].write([small()]) == content


def table(words: dict[object, object]) -> SymbolsState:
    """As k2 pickles it."""
    state = SymbolsState()
    back = {word: symbol for symbol, word in words.items()}
    state.__setstate__({"_id2sym": words, "_sym2id": back, "_next_available_id": 9, "eps": "<eps>"})
    return state


def with_tables(**tables: object) -> bytes:
    saved = {**as_tensors(record()), "labels_version": 0, **tables}
    return write_record(saved, {SymbolsState: ("k2.symbol_table", "SymbolTable")})


def test_words_are_those_of_the_tables_that_k2_lattices_carry() -> None:
    labels = table({0: "<eps>", 7: "w7", 8: "w8", 9: "w9"})
    aux = table({0: "<eps>", 3: "the", 4: "cat", 5: "a"})
    content = with_tables(labels_sym=labels, aux_labels_sym=aux)

    def words(options: ReadOptions) -> list[str]:
        (lattice,) = LATTICE_FORMATS["k2-pt"].read(content, options)
        assert lattice.symbols is not None
        return [lattice.symbols[word] for word in lattice.words.values.tolist()]

    assert words(ReadOptions()) == ["the", "a", "cat"]
    assert words(ReadOptions(words_on="labels")) == ["w7", "w8", "w9"]
    assert words(ReadOptions(symbols={3: "x", 4: "y", 5: "z"})) == ["x", "z", "y"]


@pytest.mark.parametrize("words", [{"x": "the"}, {3: 4}, {-1: "the"}])
def test_a_table_of_anything_but_words_is_refused(words: dict[object, object]) -> None:
    with pytest.raises(LatticeError) as caught:
        LATTICE_FORMATS["k2-pt"].read(with_tables(aux_labels_sym=table(words)), ReadOptions())
    assert caught.value.pointer == "/symbols"


def test_a_table_of_another_state_is_refused() -> None:
    state = SymbolsState()
    state.__setstate__([1, 2])
    with pytest.raises(LatticeError, match="aux_labels_sym is no SymbolTable") as caught:
        LATTICE_FORMATS["k2-pt"].read(with_tables(aux_labels_sym=state), ReadOptions())
    assert caught.value.pointer == "/aux_labels_sym"


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        import os  # noqa: PLC0415

        return os.system, ("touch /tmp/should_not_be",)


@pytest.mark.parametrize(
    "content", [Evil(), {"arcs": Evil()}, {"arcs": {1, 2}}, {"arcs": time.time}]
)
def test_a_pickle_of_anything_else_is_refused(content: object) -> None:
    with pytest.raises(LatticeError):
        LATTICE_FORMATS["k2-pt"].read(as_pt(content), ReadOptions())


def test_a_mapping_is_needed() -> None:
    with pytest.raises(LatticeError, match=r"save fsa\.as_dict"):
        LATTICE_FORMATS["k2-pt"].read(as_pt(torch.zeros(3)), ReadOptions())


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1, dtype=torch.int32).expand(1_000_000_000_000, 4),
        torch.zeros(4, 4, dtype=torch.bfloat16),
        torch.zeros(4, 4, dtype=torch.complex64),
        torch.eye(4).to_sparse(),
        torch.tensor(3),
    ],
)
def test_a_tensor_that_is_not_plain_is_refused_before_it_takes_memory(tensor: torch.Tensor) -> None:
    with pytest.raises(LatticeError) as caught:
        LATTICE_FORMATS["k2-pt"].read(as_pt({"arcs": tensor}), ReadOptions())
    assert caught.value.pointer in ("/arcs", "")


def test_torchs_older_forms_are_refused_even_before_a_zip() -> None:
    buffer = io.BytesIO()
    torch.save({"arcs": torch.zeros(1)}, buffer, _use_new_zipfile_serialization=False)
    plain = LATTICE_FORMATS["k2-pt"].write([small()])
    for content in (buffer.getvalue(), buffer.getvalue() + plain):
        with pytest.raises(LatticeError, match="no zip file"):
            LATTICE_FORMATS["k2-pt"].read(content, ReadOptions())


def test_a_zip_that_unpacks_to_more_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(LatticeError, match="unpacks to 10000000"):
        LATTICE_FORMATS["k2-pt"].read(buffer.getvalue(), ReadOptions())


@pytest.mark.parametrize(
    "state",
    [
        None,
        (np.zeros(2, np.int32), "row_ids2", np.zeros(2)),
        (np.zeros(2), "row_ids1", np.zeros(2)),
        (np.zeros(5, np.int32), "row_ids1", np.zeros((2, 2))),
        ([0, 1], "row_ids1", [0]),
    ],
)
def test_a_ragged_tensor_of_another_state_is_refused(state: object) -> None:
    lists = RaggedState()
    lists.__setstate__(state)
    saved = {"arcs": as_tensors(record())["arcs"], "aux_labels": lists}
    content = write_record(saved, {RaggedState: ("_k2.ragged", "RaggedTensor")})
    with pytest.raises(LatticeError) as caught:
        LATTICE_FORMATS["k2-pt"].read(content, ReadOptions())
    assert caught.value.pointer == "/aux_labels"
