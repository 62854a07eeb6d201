from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import safetensors.numpy
import torch

from quantized_lm.artifact import (
    GOLDEN_TOLERANCE,
    GOLDEN_TOLERANCE_INT8,
    _manifest_hash,
    bundled_path,
    load_artifact,
    read_manifest,
)
from quantized_lm.errors import (
    ArtifactError,
    ArtifactGoldenError,
    ArtifactIntegrityError,
    ArtifactVersionError,
    BackendError,
)
from quantized_lm.models.transformer import Transformer, TransformerConfig
from quantized_lm.ops import BACKENDS
from quantized_lm.pipeline.export import GOLDEN_TEXTS
from quantized_lm.quant.tensor import QuantizedTensor
from quantized_lm.scoring import ScoreRequest, score_lists
from tests.conftest import TinyRun


@pytest.fixture
def artifact(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_run.artifact, tmp_path / "tiny"))


def edit_manifest(folder: Path, *, seal: bool, **changes: object) -> None:
    path = folder / "manifest.json"
    value = {**json.loads(path.read_text()), **changes}
    if seal:
        value["sha256"] = _manifest_hash(value)
    path.write_text(json.dumps(value))


def test_the_manifest_counts_every_byte(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    files = [path for path in artifact.iterdir() if path.name != "manifest.json"]
    assert manifest.size_bytes == sum(path.stat().st_size for path in files)
    arrays = safetensors.numpy.load_file(artifact / "weights.safetensors")
    stored = sum(array.nbytes for array in arrays.values())
    assert manifest.bits_per_weight == pytest.approx(8 * stored / manifest.parameters)
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
    edit_manifest(artifact, seal=True, format_version=2, something_new=1)
    with pytest.raises(ArtifactVersionError, match="version 2 is newer than 1.*upgrade"):
        load_artifact(artifact)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": "1"}, "format_version is '1'"),
        ({"unexpected": 1}, "unknown field 'unexpected'"),
        ({"architecture": "rnn"}, "'rnn'"),
        ({"files": {"../x": {"sha256": "", "size_bytes": 0}}}, "leaves the folder"),
        ({"tensors": {}}, "does not fit the architecture"),
        ({"config": {}}, "is missing"),
    ],
)
def test_an_inconsistent_manifest_is_refused(
    artifact: Path, changes: dict[str, object], message: str
) -> None:
    edit_manifest(artifact, seal=True, **changes)
    with pytest.raises(ArtifactIntegrityError, match=message):
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
    path = artifact / "golden.json"
    golden = json.loads(path.read_text())
    golden["texts"][2]["log_prob"] *= 1 + 2 * tolerance
    path.write_text(json.dumps(golden))
    content = path.read_bytes()
    files = json.loads((artifact / "manifest.json").read_text())["files"]
    files["golden.json"] = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
    }
    edit_manifest(artifact, seal=True, files=files)
    with pytest.raises(ArtifactGoldenError, match="golden score is"):
        load_artifact(artifact, backend=backend)


def test_an_unknown_backend_or_model_is_refused(artifact: Path) -> None:
    with pytest.raises(BackendError, match="no backend is named 'abacus'"):
        load_artifact(artifact, backend="abacus")
    with pytest.raises(ArtifactError, match="no model 'xx' ships.*en-small"):
        bundled_path("xx")


def test_the_bundled_model_loads_and_is_small() -> None:
    folder = bundled_path("en-small")
    loaded = load_artifact(folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 6_000_000
    assert loaded.manifest.bits_per_weight <= 4.0
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
    arrays = safetensors.numpy.load_file(folder / "weights.safetensors")
    weights = dict(arrays)
    for name, entry in loaded.manifest.tensors.items():
        if entry.group_size:
            parts = (arrays[f"{name}.{part}"] for part in ("words", "scale", "levels"))
            shape = (entry.shape[0], entry.shape[1])
            tensor = QuantizedTensor(entry.format, shape, entry.group_size, *parts)
            weights[name] = tensor.dequantize()
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
