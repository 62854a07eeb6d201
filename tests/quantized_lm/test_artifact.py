from __future__ import annotations

import hashlib
import json
import math
import shutil
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from quantized_lm.artifact import (
    DEFAULT_MODEL,
    ArtifactParts,
    LoadedModel,
    bundled_path,
    load_artifact,
    model_folder,
    write_artifact,
)
from quantized_lm.errors import (
    ArtifactError,
    ArtifactGoldenError,
    ArtifactIntegrityError,
    ArtifactVersionError,
    BackendError,
    FormatError,
)
from quantized_lm.golden import GOLDEN_TOLERANCE, GOLDEN_TOLERANCE_INT8
from quantized_lm.manifest import WEIGHTS, ModelCard, manifest_hash, read_manifest
from quantized_lm.models.transformer import Transformer
from quantized_lm.models.transformer_config import TransformerConfig
from quantized_lm.ops import BACKENDS
from quantized_lm.pipeline.export import GOLDEN_TEXTS
from quantized_lm.scoring import ScoreRequest, score_lists
from quantized_lm.storage import CODINGS, Restored, restore, weights_bytes
from tests.conftest import TinyRun


@pytest.fixture
def artifact(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_run.artifact, tmp_path / "tiny"))


def weights_of(folder: Path) -> Restored:
    manifest = read_manifest(folder)
    content = (folder / "weights.safetensors").read_bytes()
    return restore(content, manifest.tensors, manifest.format_version)


def rewritten(
    source: Path, folder: Path, coding: str, golden_texts: tuple[str, ...] = GOLDEN_TEXTS
) -> Path:
    """The same model, stored in another way."""
    weights, loaded = weights_of(source), load_artifact(source, backend="reference")
    parts = ArtifactParts(
        ModelCard(**{each.name: getattr(loaded.manifest, each.name) for each in fields(ModelCard)}),
        weights.packed,
        weights.plain,
        loaded.tokenizer,
        golden_texts,
        b"name: tiny\n",
        coding,
    )
    write_artifact(folder, parts)
    return folder


def replace_file(folder: Path, name: str, content: bytes, **changes: object) -> None:
    """Put another file into a folder, its hashes and sizes right."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    files = manifest["files"]
    files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    sums = {
        "size_bytes": sum(entry["size_bytes"] for entry in files.values()),
        "bits_per_weight": 8 * files["weights.safetensors"]["size_bytes"] / manifest["parameters"],
    }
    edit_manifest(folder, seal=True, files=files, **{**sums, **changes})


def log_probs(loaded: LoadedModel) -> list[list[float]]:
    (scores,) = score_lists([ScoreRequest(GOLDEN_TEXTS)], loaded)
    return [score.token_log_probs.tolist() for score in scores.scores]


def edit_manifest(folder: Path, *, seal: bool, **changes: object) -> None:
    path = folder / "manifest.json"
    value = {**json.loads(path.read_text()), **changes}
    if seal:
        value["sha256"] = manifest_hash(value)
    path.write_text(json.dumps(value))


def test_the_manifest_counts_every_byte(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    files = [path for path in artifact.iterdir() if path.name != "manifest.json"]
    assert manifest.size_bytes == sum(path.stat().st_size for path in files)
    stored = (artifact / "weights.safetensors").stat().st_size
    assert manifest.bits_per_weight == pytest.approx(8 * stored / manifest.parameters)
    assert manifest.weights_bytes == stored
    weights = weights_of(artifact)
    assert weights_bytes(weights.packed, weights.plain) == stored
    packed = sum(tensor.size_bytes for tensor in weights.packed.values())
    packed += sum(array.nbytes for array in weights.plain.values())
    assert manifest.packed_bits_per_weight == pytest.approx(8 * packed / manifest.parameters)
    shapes = {name: np.zeros(entry.shape, np.float32) for name, entry in manifest.tensors.items()}
    assert manifest.compression == len(safetensors.numpy.save(shapes)) / stored
    assert manifest.parameters == 64 * 32 + 2 * (4 * 32 * 32 + 2 * 32 * 64 + 2) + 32


def test_a_loaded_model_reproduces_its_golden_scores(artifact: Path) -> None:
    loaded = load_artifact(artifact, backend="reference")
    golden = json.loads((artifact / "golden.json").read_text())["texts"]
    (scores,) = score_lists([ScoreRequest(GOLDEN_TEXTS)], loaded)
    assert [entry["text"] for entry in golden] == list(GOLDEN_TEXTS)
    for entry, score in zip(golden, scores.scores, strict=True):
        assert score.log_prob == pytest.approx(entry["log_prob"], rel=1e-5)
    assert loaded.revision == f"sha256:{read_manifest(artifact).sha256}"
    assert loaded.backend == "reference/torch"


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "tokenizer.json", "golden.json", "recipe.yaml"]
)
def test_a_damaged_file_is_refused_with_its_name(artifact: Path, name: str) -> None:
    path = artifact / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ArtifactIntegrityError, match=rf"{name} has .* bytes.*truncated"):
        load_artifact(artifact)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactIntegrityError, match=rf"{name} does not match its sha256"):
        load_artifact(artifact)
    path.unlink()
    with pytest.raises(ArtifactIntegrityError, match=rf"{name} cannot be read.*again"):
        load_artifact(artifact)


def test_an_altered_manifest_is_refused(artifact: Path) -> None:
    edit_manifest(artifact, seal=False, default_weights={"lm_scale": 9.0})
    with pytest.raises(ArtifactIntegrityError, match="altered"):
        load_artifact(artifact)


def test_a_newer_format_asks_for_an_upgrade(artifact: Path) -> None:
    edit_manifest(artifact, seal=True, format_version=3, something_new=1)
    with pytest.raises(ArtifactVersionError, match="version 3 is newer than 2.*upgrade"):
        load_artifact(artifact)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": "1"}, "format_version is '1'"),
        ({"unexpected": 1}, "unknown field 'unexpected'"),
        ({"architecture": "rnn"}, "'rnn'"),
        (
            {"files": {"../x": {"sha256": "", "size_bytes": 0}}, "size_bytes": 0},
            "leaves the folder",
        ),
        ({"tensors": {}}, "parameters is 18468; its tensors have 0"),
        ({"parameters": 0}, "parameters is 0; its tensors have 18468"),
        ({"bits_per_weight": 0.0}, "bits_per_weight is 0.0; need a byte or more"),
        (
            {"bits_per_weight": 1.0},
            r"bits_per_weight is 1.0, 2308 bytes in all; weights\.saf.* has",
        ),
        ({"size_bytes": 5}, "size_bytes is 5; its files have"),
        ({"boundary": {"symbol": "</s>", "id": 1}}, "boundary is .*'id': 1.*; need .*'id': 0"),
        ({"bits_per_weight": math.nan}, "bits_per_weight is nan"),
        ({"bits_per_weight": 10**400}, "integer of 1329 bits; need float"),
        ({"max_tokens": 31}, "max_tokens is 31; its config has 96"),
        ({"default_weights": {"lm_scal": 1.0}}, "has 'lm_scal'; known are am_scale, bias"),
        ({"default_weights": {"extra": 1.0}}, "default_weights has 'extra'"),
        ({"default_weights": {"lm_scale": math.nan}}, "lm_scales/lm: weight is nan"),
        ({"default_weights": {"length_offset": -1}}, "/length_offset: length_offset is -1"),
        ({"name": "a\ud800"}, r"a text holds '\\ud800', half a surrogate; need Unicode"),
        ({"provenance": {"\udfff": [1]}}, "half a surrogate"),
        ({"text": {"case": "Title"}}, "manifest.json: text: text case is 'Title'"),
        (
            {"files": {"a\0b": {"sha256": "", "size_bytes": 1}}, "size_bytes": 1},
            "cannot be read.*null (byte|character)",
        ),
        ({"config": {}}, "is missing"),
    ],
)
def test_an_inconsistent_manifest_is_refused(
    artifact: Path, changes: dict[str, object], message: str
) -> None:
    edit_manifest(artifact, seal=True, **changes)
    with pytest.raises(ArtifactIntegrityError, match=message):
        load_artifact(artifact)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_scores_do_not_depend_on_the_coding(artifact: Path, tmp_path: Path, backend: str) -> None:
    reason = BACKENDS[backend].why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    expected, sizes = log_probs(load_artifact(artifact, backend=backend)), {}
    for coding in CODINGS:
        folder = rewritten(artifact, tmp_path / f"as-{coding}", coding)
        sizes[coding] = read_manifest(folder).weights_bytes
        assert log_probs(load_artifact(folder, backend=backend)) == expected
    assert read_manifest(artifact).weights_bytes <= min(sizes.values())


def test_what_cannot_be_written_leaves_the_artifact_that_is_there(artifact: Path) -> None:
    before = {path.name: path.read_bytes() for path in artifact.iterdir()}
    with pytest.raises(FormatError, match="no coding is named 'zip'"):
        rewritten(artifact, artifact, "zip")
    with pytest.raises(FormatError, match="there is no golden text"):
        rewritten(artifact, artifact, "auto", golden_texts=("the cat " * 100,))
    assert {path.name: path.read_bytes() for path in artifact.iterdir()} == before


def test_a_folder_of_version_1_still_loads(artifact: Path) -> None:
    expected = log_probs(load_artifact(artifact, backend="reference"))
    weights = weights_of(artifact)
    arrays: dict[str, Any] = dict(weights.plain)
    for name, tensor in weights.packed.items():
        for part in ("words", "scale", "levels"):
            arrays[f"{name}.{part}"] = getattr(tensor, part)
    value = json.loads((artifact / "manifest.json").read_text())
    for entry in value["tensors"].values():
        del entry["coding"], entry["num_levels"]
    content = safetensors.numpy.save(arrays)
    replace_file(artifact, WEIGHTS, content, tensors=value["tensors"], format_version=1)
    loaded = load_artifact(artifact, backend="reference")
    assert log_probs(loaded) == expected
    assert loaded.manifest.packed_bits_per_weight == pytest.approx(
        8
        * sum(entry.size_bytes for entry in loaded.manifest.tensors.values())
        / loaded.manifest.parameters
    )


def test_one_wrong_bit_behind_right_hashes_is_refused(artifact: Path, tmp_path: Path) -> None:
    folder = rewritten(artifact, tmp_path / "coded", "rans")
    arrays = safetensors.numpy.load_file(folder / "weights.safetensors")
    for position in (0, 5, len(arrays["coded"]) // 2):
        coded = arrays["coded"].copy()
        coded[position] ^= 1
        replace_file(folder, WEIGHTS, safetensors.numpy.save({**arrays, "coded": coded}))
        with pytest.raises(ArtifactIntegrityError, match="do not match their checksum.*again"):
            load_artifact(folder)
    coded[:4] = np.frombuffer(zlib.crc32(coded[4:].tobytes()).to_bytes(4, "little"), np.uint8)
    replace_file(folder, WEIGHTS, safetensors.numpy.save({**arrays, "coded": coded}))
    with pytest.raises(ArtifactIntegrityError, match="do not come out even|need more"):
        load_artifact(folder)


def test_a_shape_of_another_architecture_is_refused_before_it_takes_memory(artifact: Path) -> None:
    tensors = json.loads((artifact / "manifest.json").read_text())["tensors"]
    tensors["embedding.weight"]["shape"] = [1 << 20, 1 << 20]
    parameters = sum(math.prod(entry["shape"]) for entry in tensors.values())
    stored = (artifact / WEIGHTS).stat().st_size
    changes = {"parameters": parameters, "bits_per_weight": 8 * stored / parameters}
    edit_manifest(artifact, seal=True, tensors=tensors, **changes)
    with pytest.raises(ArtifactIntegrityError, match=r"'embedding\.weight' is .*need \(64, 32\)"):
        load_artifact(artifact)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactIntegrityError, match=r"holds no manifest\.json; give a model's own"
    ):
        load_artifact(tmp_path)


def test_a_manifest_that_is_no_json_is_refused(artifact: Path) -> None:
    for content in ("{", "[]"):
        (artifact / "manifest.json").write_text(content)
        with pytest.raises(ArtifactIntegrityError, match=r"manifest\.json"):
            load_artifact(artifact)


@pytest.mark.parametrize(
    ("backend", "tolerance"), [("reference", GOLDEN_TOLERANCE), ("cpu", GOLDEN_TOLERANCE_INT8)]
)
def test_a_model_that_misses_its_golden_scores_is_refused(
    artifact: Path, backend: str, tolerance: float
) -> None:
    reason = BACKENDS[backend].why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    golden = json.loads((artifact / "golden.json").read_text())
    golden["texts"][2]["log_prob"] *= 1 + 2 * tolerance
    replace_file(artifact, "golden.json", json.dumps(golden).encode())
    with pytest.raises(ArtifactGoldenError, match="golden score is"):
        load_artifact(artifact, backend=backend)


def test_an_unknown_backend_or_model_is_refused(artifact: Path) -> None:
    with pytest.raises(BackendError, match="no backend is named 'abacus'"):
        load_artifact(artifact, backend="abacus")
    with pytest.raises(ArtifactError, match="no model 'xx' ships.*en-small"):
        bundled_path("xx")
    with pytest.raises(ArtifactError, match="xx holds no manifest.json, and no model 'xx' ships"):
        model_folder("xx")


def test_a_model_is_its_folder_or_a_name_that_ships(artifact: Path) -> None:
    assert model_folder(artifact) == artifact
    assert model_folder(DEFAULT_MODEL) == model_folder() == bundled_path(DEFAULT_MODEL)


@pytest.mark.parametrize(
    ("name", "most_bytes", "most_bits"),
    [("en-small", 6_000_000, 4.0), ("en-tiny", 1_500_000, 2.1)],
)
def test_the_bundled_models_load_and_are_small(
    name: str, most_bytes: int, most_bits: float
) -> None:
    folder = bundled_path(name)
    loaded = load_artifact(folder)
    assert loaded.name == name
    assert sum(path.stat().st_size for path in folder.iterdir()) <= most_bytes
    assert loaded.manifest.bits_per_weight <= most_bits
    assert all(
        entry.group_size > 0
        for name, entry in loaded.manifest.tensors.items()
        if len(entry.shape) == 2
    )


@pytest.mark.parametrize(
    ("backend", "tolerance"), [("reference", 1e-5), ("cpu", GOLDEN_TOLERANCE_INT8)]
)
def test_the_bundled_model_scores_as_float32_of_its_unpacked_weights(
    backend: str, tolerance: float
) -> None:
    reason = BACKENDS[backend].why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    folder = bundled_path("en-small")
    loaded = load_artifact(folder, backend=backend)
    floats = Transformer(TransformerConfig(**loaded.manifest.config))
    stored = weights_of(folder)
    weights = stored.plain | {name: tensor.dequantize() for name, tensor in stored.packed.items()}
    with torch.no_grad():
        for name, parameter in floats.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name]))
    (scores,) = score_lists([ScoreRequest(GOLDEN_TEXTS)], loaded)
    for score in scores.scores:
        ids = torch.tensor([[0, *score.token_ids]])
        with torch.inference_mode():
            hidden = floats(ids[:, :-1], torch.zeros_like(ids[:, :-1]))
            log_prob = floats.embedding.logits(hidden)[0].log_softmax(-1)
        expected = log_prob.gather(1, ids[0, 1:, None]).double().sum().item()
        assert score.log_prob == pytest.approx(expected, rel=tolerance)
