"""Folders whose hashes are right and that are still no model: each is refused, and says why."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from quantized_lm import artifact
from quantized_lm.artifact import bundled_path, load_artifact
from quantized_lm.errors import ArtifactError, ArtifactGoldenError, ArtifactIntegrityError
from quantized_lm.golden import GOLDEN_TOLERANCE
from quantized_lm.manifest import WEIGHTS, manifest_hash, read_manifest
from quantized_lm.models.config import MAX_TOKENS, is_packed
from quantized_lm.models.lstm_config import LstmConfig
from quantized_lm.models.transformer_config import TransformerConfig
from quantized_lm.tensor_entry import TensorEntry

SOURCE = bundled_path("en-small")
Json = dict[str, Any]
Edit = Callable[[Json], object]


def edited(folder: Path, edit: Edit = lambda _: None, **files: bytes | None) -> Path:
    """A copy of the bundled model, sealed anew.

    Args:
        edit: changes the manifest. files: put in place of golden, tokenizer or weights; None is
            left out.
    """
    manifest = json.loads((SOURCE / "manifest.json").read_bytes())
    content = {name: (SOURCE / name).read_bytes() for name in manifest["files"]}
    for stem, data in files.items():
        (name,) = (name for name in content if name.startswith(stem))
        if data is None:
            del content[name]
        else:
            content[name] = data
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
        for name, data in content.items()
    }
    manifest["size_bytes"] = sum(map(len, content.values()))
    stored = len(content.get(WEIGHTS, b""))
    manifest["bits_per_weight"] = 8 * stored / manifest["parameters"]
    edit(manifest)
    manifest["sha256"] = manifest_hash(manifest)
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def refused(
    folder: Path, message: str, error: type[ArtifactError] = ArtifactIntegrityError
) -> None:
    """Require the folder to be refused, and named."""
    with pytest.raises(error, match=message) as raised:
        load_artifact(folder, threads=1)
    assert str(folder) in str(raised.value)


def config(**changes: object) -> Edit:
    return lambda manifest: manifest["config"].update(changes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (config(num_layers=10**9), "num_layers is 1000000000; there are 27 tensors"),
        (config(num_layers=-1), "num_layers is -1; need 0 or more"),
        (config(num_layers=4), "tensor 'blocks.4.* does not fit the architecture"),
        (config(max_tokens=10**9), "max_tokens is 1000000000; need at most 65536"),
        (config(max_tokens=0), "max_tokens is 0; need 1 or more"),
        (config(max_tokens=255), "max_tokens is 256; its config has 255"),
        (config(num_heads=0), "num_heads is 0; need 1 or more"),
        (config(num_heads=7), "model_dim 384 over num_heads 7 is no even number"),
        (config(rope_base=math.nan), "rope_base is nan"),
        (config(rope_base=0.0), "rope_base is 0.0; need a finite number of 1 or more"),
        (lambda manifest: manifest.update(architecture="foo"), "'foo'; known are transformer"),
    ],
)
def test_a_config_that_does_not_fit_the_tensors_is_refused(
    tmp_path: Path, edit: Edit, message: str
) -> None:
    refused(edited(tmp_path / "a", edit), message)


def golden(log_prob: object = -1.0, *, text: str = "yes", tolerance: object = 1e-3) -> bytes:
    texts = [{"text": text, "log_prob": log_prob}]
    return json.dumps({"tolerance": tolerance, "texts": texts}).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the manifest names no golden.json"),
        (b"{", "golden.json cannot be read"),
        (b"[" * 100_000, "golden.json cannot be read"),
        (b"[]", r"golden.json: got \[\]; need a mapping"),
        (golden("x"), "golden.json: texts: log_prob: got 'x'; need float"),
        (golden(math.nan), "golden.json: texts: log_prob is nan; need a finite number"),
        (golden(tolerance=2 * GOLDEN_TOLERANCE), "tolerance is 0.002; need 0 to 0.001"),
        (golden(tolerance=-1.0), "tolerance is -1.0"),
        (golden(tolerance=math.nan), "tolerance is nan"),
        (golden(text="a " * 5000), "a path has .* tokens; need at most 256"),
        (b'{"tolerance": 0.001, "texts": []}', "there is no golden text; need at least one"),
    ],
)
def test_golden_scores_that_say_nothing_are_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    refused(edited(tmp_path / "a", golden=content), message)


def test_a_golden_score_that_does_not_come_out_names_folder_and_backend(tmp_path: Path) -> None:
    folder = edited(tmp_path / "a", golden=golden(-100.0))
    refused(folder, "on (cpu|reference)/.*: 'yes' scores .*; its golden", ArtifactGoldenError)


def tokenizer(edit: Edit) -> bytes:
    value = json.loads((SOURCE / "tokenizer.json").read_bytes())
    edit(value)
    return json.dumps(value).encode()


def with_added(token_id: int) -> bytes:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    token = {"id": token_id, "content": "zebra", **flags}
    return tokenizer(lambda value: value["added_tokens"].append(token))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the manifest names no tokenizer.json"),
        (with_added(4096), "token of id 4096; need ids below vocab_size 4096"),
        (
            tokenizer(lambda value: value["model"]["vocab"].update(zebra=4_000_000_000)),
            "token of id 4000000000; need ids below vocab_size 4096",
        ),
    ],
)
def test_a_vocabulary_that_is_not_the_models_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    refused(edited(tmp_path / "a", tokenizer=content), message)


def test_an_unpacked_tensor_of_no_number_is_refused(tmp_path: Path) -> None:
    arrays = safetensors.numpy.load_file(SOURCE / "weights.safetensors")
    floats = arrays["float32"].copy()
    floats[-1] = np.nan
    content = safetensors.numpy.save({**arrays, "float32": floats})
    refused(edited(tmp_path / "a", weights=content), "'gain' holds NaN or infinity")


@pytest.mark.parametrize(
    ("architecture", "sizes", "message"),
    [
        (
            "lstm",
            LstmConfig(vocab_size=4096, num_layers=1, model_dim=1 << 15, max_tokens=256),
            r"takes 166\d\d MiB to load; 1024 MiB",
        ),
        # Its weights are little; for each depth there is a row of rotations.
        (
            "transformer",
            TransformerConfig(4096, 0, 1 << 12, 1, 1, max_tokens=MAX_TOKENS),
            r"takes 20\d\d MiB to load; 1024 MiB",
        ),
    ],
)
def test_what_unpacks_to_more_than_the_memory_is_refused_before_it_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    sizes: LstmConfig | TransformerConfig,
    message: str,
) -> None:
    entries = {
        name: TensorEntry("8bit", shape, shape[1], 99, 0.0, "rans", 1)
        if is_packed(name, shape)
        else TensorEntry("float32", shape, 0, 4 * math.prod(shape), 32.0)
        for name, shape in sizes.shapes().items()
    }

    parameters = sum(math.prod(entry.shape) for entry in entries.values())

    def edit(manifest: Json) -> None:
        stored = manifest["files"][WEIGHTS]["size_bytes"]
        manifest |= {
            "architecture": architecture,
            "config": dataclasses.asdict(sizes),
            "max_tokens": sizes.max_tokens,
            "tensors": {name: dataclasses.asdict(entry) for name, entry in entries.items()},
            "parameters": parameters,
            "bits_per_weight": 8 * stored / parameters,
        }

    monkeypatch.setattr(artifact, "available_bytes", lambda: 1 << 30)
    refused(edited(tmp_path / "a", edit), message, ArtifactError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders")
@pytest.mark.parametrize("name", ["recipe.yaml", "manifest.json"])
def test_what_is_no_regular_file_is_refused_unread(tmp_path: Path, name: str) -> None:
    folder = edited(tmp_path / "a")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, f"{name} is no regular file")


def test_a_manifest_that_is_too_large_or_too_deep_is_refused(tmp_path: Path) -> None:
    folder = edited(tmp_path / "a")
    with (folder / "manifest.json").open("r+b") as manifest:
        manifest.truncate(1 << 30)
    refused(folder, "has 1073741824 bytes; need at most")
    (folder / "manifest.json").write_bytes(b"[" * 100_000)
    refused(folder, "cannot be read.*recursion")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size_bytes": 0}, "tensors.gain: there are 0 bytes"),
        ({"shape": [0]}, r"tensors.gain: shape is \(0,\); need lengths of 1 or more"),
        ({"format": "8bit"}, "tensors.gain: group_size is 0, format '8bit'"),
    ],
)
def test_a_manifest_of_which_nothing_can_be_computed_is_refused_alone(
    tmp_path: Path, changes: Json, message: str
) -> None:
    folder = edited(tmp_path / "a", lambda manifest: manifest["tensors"]["gain"].update(changes))
    with pytest.raises(ArtifactIntegrityError, match=message):
        read_manifest(folder)
