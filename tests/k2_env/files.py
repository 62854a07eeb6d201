"""In k2's environment: `files write DIR` saves lattices as k2's users do, with what is in them.

`files check DIR` reads what this package wrote of the same lattices into DIR/ours, without a line
of this package, and prints which columns of each file k2 has otherwise than the lattice had.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import k2
import torch
from safetensors.numpy import load_file

from tests.k2_env.toys import lattices


def write(folder: Path) -> None:
    """NAME.pt, NAME.k2.txt of those that are one Fsa, and NAME.facts.json."""
    for name, fsa in lattices().items():
        torch.save(fsa.as_dict(), folder / f"{name}.pt")
        if len(fsa.shape) == 2:
            (folder / f"{name}.k2.txt").write_text(_text(fsa))
        (folder / f"{name}.facts.json").write_text(json.dumps(_facts(fsa)))


def check(folder: Path) -> None:
    """Print the names of the columns that are not the lattice's, by file."""
    readers = {".pt": _load_pt, ".json": _load_json, ".safetensors": _load_tensors, ".txt": _parse}
    wrong = {}
    for path in sorted((folder / "ours").iterdir()):
        name = path.name.split(".")[0]
        fsa = readers[path.suffix](path)
        facts = json.loads((folder / f"{name}.facts.json").read_text())
        found = _facts(fsa)
        names = found if path.suffix == ".txt" else facts
        wrong[path.name] = [column for column in names if found.get(column) != facts[column]]
    print(json.dumps(wrong))  # noqa: T201


def _facts(fsa: Any) -> dict[str, Any]:
    """Every column as plain lists, float32 as its bits; words without 0 and -1."""
    facts: dict[str, Any] = {}
    for column, value in fsa.as_dict().items():
        if column == "aux_labels":
            rows = value.tolist()
            rows = rows if isinstance(value, k2.RaggedTensor) else [[word] for word in rows]
            facts[column] = [[word for word in row if word > 0] for row in rows]
        elif isinstance(value, torch.Tensor):
            facts[column] = value.contiguous().view(torch.int32).tolist()
    return facts


def _text(fsa: Any) -> str:
    """k2's text; `to_str_simple` leaves lists out, which the function it calls can print."""
    aux = getattr(fsa, "aux_labels", None)
    if isinstance(aux, k2.RaggedTensor):
        text: str = k2.utils._k2.fsa_to_str(fsa.arcs, False, [], [aux])
        return text
    return str(k2.utils.to_str_simple(fsa))


def _load_pt(path: Path) -> Any:
    return k2.Fsa.from_dict(torch.load(path))


def _load_json(path: Path) -> Any:
    record = json.loads(path.read_text())
    arcs = record.pop("arcs")
    if isinstance(arcs[0], list):
        ends = torch.tensor([row[:3] for row in arcs], dtype=torch.int32)
        scores = torch.tensor([row[3] for row in arcs], dtype=torch.float32)
        tensor = torch.cat([ends, scores.view(torch.int32)[:, None]], dim=1)
    else:
        tensor = torch.tensor(arcs, dtype=torch.int32)
    columns: dict[str, Any] = {"arcs": tensor}
    for name, values in record.items():
        if name in ("symbols", "id", "ids"):
            continue
        if isinstance(values[0], list):
            columns[name] = k2.RaggedTensor(values, dtype=torch.int32)
        else:
            is_whole = all(isinstance(value, int) for value in values)
            columns[name] = torch.tensor(values, dtype=torch.int32 if is_whole else torch.float32)
    return k2.Fsa.from_dict(columns)


def _load_tensors(path: Path) -> Any:
    arrays = {name: torch.from_numpy(array) for name, array in load_file(path).items()}
    columns = {name: array for name, array in arrays.items() if "." not in name}
    if "aux_labels.values" in arrays:
        shape = k2.ragged.create_ragged_shape2(row_splits=arrays["aux_labels.row_splits"])
        columns["aux_labels"] = k2.RaggedTensor(shape, arrays["aux_labels.values"])
    return k2.Fsa.from_dict(columns)


def _parse(path: Path) -> Any:
    text = path.read_text()
    columns = len(text.split("\n", maxsplit=1)[0].split("[")[0].split())
    if "[" in text:
        return k2.Fsa.from_str(text, num_aux_labels=0, ragged_label_names=["aux_labels"])
    return k2.Fsa.from_str(text, **({"acceptor": True} if columns == 4 else {"num_aux_labels": 1}))


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]))
