"""k2's Fsa in and out, within the decoder's own process.

For a process that has k2 already, with the Python, torch and numpy that k2 was built for: nothing
else of this package is needed there but what reads lattices, and that imports neither torch nor the
native module. Knows no file and no service. Gradients are not carried; tensors come back on the
CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats.base import ReadOptions, require_some
from quantized_lm.lattice.formats.k2_lattices import tensors_of
from quantized_lm.lattice.formats.k2_tensors import K2Tensors, Whole, lattices_of, tensors_of_arcs
from quantized_lm.lattice.lattice import Column, Lattice, Ragged

_KINDS = "iufb"
_IN_ARCS = ("labels", "scores")  # columns of the arcs that k2 shows as attributes, too
_DEFAULT = ReadOptions()


def to_lattice(fsa: Any, options: ReadOptions = _DEFAULT) -> Lattice:
    """The lattice of an Fsa, or of an FsaVec of one.

    am = scores - lm_scores and graph = lm_scores; words are those of `aux_labels`, where there are
    any. Every other attribute with an entry per arc is carried, and `from_lattice` gives the same
    Fsa back, bit for bit, with `aux_labels` as a tensor where no arc has two words.

    Args:
        fsa: k2.Fsa, on any device.
        options: `symbols` are the words by id, such as {i: table[i] for i in table.ids} of a
            k2.SymbolTable.

    Raises:
        LatticeError: it is no valid lattice; says which k2 function makes it one. Or there are
            several: take `to_lattices`.
    """
    lattices = to_lattices(fsa, options)
    if len(lattices) != 1:
        raise LatticeError(f"the FsaVec has {len(lattices)} lattices; need one, or to_lattices")
    return lattices[0]


def to_lattices(fsa: Any, options: ReadOptions = _DEFAULT) -> list[Lattice]:
    """The same of an FsaVec of any length, in its order."""
    columns: dict[str, Column | Ragged] = {}
    for name, value in fsa.as_dict().items():
        if hasattr(value, "num_axes"):
            columns[name] = _lists(name, value)
        elif hasattr(value, "detach") and name not in _IN_ARCS:
            columns[name] = _array(value)
    arcs = columns.pop("arcs")
    assert not isinstance(arcs, Ragged)
    return lattices_of(tensors_of_arcs(arcs, columns, options), Whole(options))


def from_lattice(lattice: Lattice) -> Any:
    """A k2.Fsa with scores = am + graph, lm_scores = graph, words as aux_labels or labels.

    Raises:
        LatticeError: a score is too large for float32.
    """
    return _to_fsa(tensors_of([lattice], kinds=_KINDS))


def from_lattices(lattices: Sequence[Lattice]) -> Any:
    """The same as an FsaVec, of one lattice or more; attributes that not all have are left out."""
    require_some(lattices, at_most_one=False, name="an FsaVec")
    tensors = tensors_of(lattices, kinds=_KINDS)
    if not tensors.is_vector:
        states = int(tensors.ends[:, 1].max()) + 1
        tensors = replace(
            tensors,
            arc_splits=np.array([0, len(tensors.ends)]),
            state_splits=np.array([0, states]),
        )
    return _to_fsa(tensors)


def _to_fsa(tensors: K2Tensors) -> Any:
    import k2  # noqa: PLC0415 - only a decoder's process has it
    import torch  # noqa: PLC0415

    def tensor(array: Column) -> Any:
        return torch.from_numpy(np.array(array, order="C"))

    record: dict[str, Any] = {"arcs": tensor(tensors.arcs())}
    for name, column in tensors.columns.items():
        if isinstance(column, Ragged):
            shape = k2.ragged.create_ragged_shape2(row_splits=tensor(column.splits))
            record[name] = k2.RaggedTensor(shape, tensor(column.values))
        else:
            record[name] = tensor(column)
    return k2.Fsa.from_dict(record)


def _array(tensor: Any) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array


def _lists(name: str, value: Any) -> Ragged:
    if value.num_axes != 2:
        raise LatticeError(
            f"{name} is a RaggedTensor of {value.num_axes} axes; need a list per arc, 2 axes",
            pointer=f"/{name}",
        )
    return Ragged(_array(value.shape.row_splits(1)), _array(value.values))
