"""Artifact: a packed model as a folder that is checked before it is believed.

manifest.json        what the model is and the sha256 of every other file, and of itself
weights.safetensors  packed matrices and what stays unpacked (storage.py)
tokenizer.json       of the tokenizers library
golden.json          texts and the scores the reference backend gave them
recipe.yaml          how the model was made
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import (
    ArtifactError,
    ArtifactGoldenError,
    ArtifactIntegrityError,
    ArtifactVersionError,
    DataError,
    FormatError,
)
from quantized_lm.files import write_atomic
from quantized_lm.models import ARCHITECTURES
from quantized_lm.models.base import LanguageModel, Resident
from quantized_lm.models.config import Shapes
from quantized_lm.models.packed import packed_model
from quantized_lm.ops import AUTO, select_backend
from quantized_lm.ops.backend import Residency
from quantized_lm.quant.tensor import QuantizedTensor
from quantized_lm.records import build
from quantized_lm.storage import AUTO as SMALLEST
from quantized_lm.storage import TensorEntry, float_bytes, restore, store
from quantized_lm.tokenizer import TextRules, Tokenizer
from quantized_lm.tree import build_tree

FORMAT_VERSION = 2
GOLDEN_TOLERANCE = 1e-3  # relative, per text: what served scores may differ from the reference
# The same where activations are rounded to int8, which moves each token's score by hundredths of a
# nat: the golden texts of the bundled model by 0.03 % to 0.7 %, the last a single word.
GOLDEN_TOLERANCE_INT8 = 2e-2
_REMEDY = "fetch or export the artifact again"
_MANIFEST = "manifest.json"
DEFAULT_MODEL = "en-small"  # of those that ship with the package


@dataclass(frozen=True)
class FileEntry:
    """One file of the folder."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a model is.

    Attributes:
        config: the architecture's config dataclass as a mapping.
        text: how a text is normalized before it is scored.
        boundary: the rule for <s> and </s>: one symbol, never scored first, scored last.
        max_tokens: longest text with its context, in tokens.
        default_weights: score weights a request gets that names none.
        parameters: weights of the float architecture, the tied embedding counted once.
        bits_per_weight: bits of weights.safetensors over parameters: scales, level tables, norms
            and header included. Version 1 left the header out.
        size_bytes: all files but the manifest.
        provenance: training data, recipe, quantizer, measurements.
        sha256: of this manifest as canonical JSON with this field empty.
    """

    format_version: int
    name: str
    architecture: str
    config: dict[str, Any]
    text: TextRules
    boundary: dict[str, Any]
    max_tokens: int
    default_weights: dict[str, float]
    tensors: dict[str, TensorEntry]
    parameters: int
    bits_per_weight: float
    size_bytes: int
    license: str
    provenance: dict[str, Any]
    files: dict[str, FileEntry] = field(default_factory=dict)
    sha256: str = ""

    @property
    def weights_bytes(self) -> int:
        """What `bits_per_weight` counts, in bytes."""
        return round(self.bits_per_weight * self.parameters / 8)

    @property
    def compression(self) -> float:
        """Bytes of the same architecture's float32 file over `weights_bytes`."""
        shapes = {name: entry.shape for name, entry in self.tensors.items()}
        return float_bytes(shapes) / self.weights_bytes

    @property
    def packed_bits_per_weight(self) -> float:
        """Bits of all tensors once decoded, headers aside, over parameters."""
        return 8 * sum(entry.packed_bytes for entry in self.tensors.values()) / self.parameters


@dataclass(frozen=True)
class LoadedModel:
    """A verified model, ready to score.

    Attributes:
        revision: "sha256:" and the manifest's hash: names these exact weights.
        backend: name and variant of what computes, e.g. "cpu/avx2".
        residency: how its matrices lie in memory: "packed", or "expanded" to a byte a weight.
    """

    name: str
    revision: str
    backend: str
    manifest: Manifest
    tokenizer: Tokenizer
    model: LanguageModel
    residency: Residency = "packed"


@dataclass(frozen=True)
class ArtifactParts:
    """What goes into an artifact besides the manifest's bookkeeping.

    Attributes:
        coding: how packed tensors are stored; key of CODINGS, or "auto" for the smallest of each.
    """

    manifest: Manifest
    packed: Mapping[str, QuantizedTensor]
    plain: Mapping[str, NDArray[np.float32]]
    tokenizer: Tokenizer
    golden_texts: tuple[str, ...]
    recipe_yaml: bytes
    coding: str = SMALLEST


def bundled_path(name: str) -> Path:
    """The folder of a model that ships with the package.

    Raises:
        ArtifactError: no such model; lists those there are.
    """
    home = Path(__file__).parent / "bundled"
    if not (home / name / _MANIFEST).exists():
        known = ", ".join(sorted(path.parent.name for path in home.glob(f"*/{_MANIFEST}")))
        raise ArtifactError(f"no model {name!r} ships with secondpass; bundled: {known or 'none'}")
    return home / name


def model_folder(name: str) -> Path:
    """Where a model is: the folder of that name, or the bundled model.

    Raises:
        ArtifactError: neither.
    """
    return Path(name) if (Path(name) / _MANIFEST).exists() else bundled_path(name)


def write_artifact(folder: Path, parts: ArtifactParts) -> Manifest:
    """Write the folder, the manifest last, so that a folder with a manifest is whole.

    Returns:
        The manifest with format version, sizes, hashes and bits filled in.

    Raises:
        FormatError: there is no such coding.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MANIFEST).unlink(missing_ok=True)
    stored = store(parts.packed, parts.plain, parts.coding)
    content = {
        "weights.safetensors": stored.content,
        "tokenizer.json": parts.tokenizer.to_json(),
        "golden.json": _golden(parts),
        "recipe.yaml": parts.recipe_yaml,
    }
    for name, data in content.items():
        write_atomic(folder / name, data)
    parameters = sum(math.prod(entry.shape) for entry in stored.entries.values())
    manifest = replace(
        parts.manifest,
        format_version=FORMAT_VERSION,
        tensors=stored.entries,
        parameters=parameters,
        bits_per_weight=8 * len(stored.content) / parameters,
        size_bytes=sum(map(len, content.values())),
        files={
            name: FileEntry(hashlib.sha256(data).hexdigest(), len(data))
            for name, data in content.items()
        },
        sha256="",
    )
    manifest = replace(manifest, sha256=_manifest_hash(asdict(manifest)))
    write_atomic(folder / _MANIFEST, json.dumps(asdict(manifest), indent=1).encode())
    return manifest


def load_artifact(
    folder: Path,
    *,
    backend: str = AUTO,
    device: str = AUTO,
    threads: int | None = None,
    pins: bool = False,
) -> LoadedModel:
    """Read, verify and prepare a model; nothing is returned unless all of it is right.

    Args:
        folder: holds manifest.json.
        backend: key of BACKENDS or "auto". device: one of DEVICES or "auto".
        threads: of the cpu backend; None for one on each core that this process may use.
        pins: whether each of them stays on one core.

    Raises:
        ArtifactVersionError: written by a newer version.
        ArtifactIntegrityError: a file is missing, truncated, altered or inconsistent.
        ArtifactGoldenError: the golden scores do not come out.
        BackendError: the backend or the device cannot be used here.
    """
    manifest = read_manifest(folder)
    engine = select_backend(backend, device=device, threads=threads, pins=pins)
    content = {name: _read_file(folder, name, entry) for name, entry in manifest.files.items()}
    try:
        tokenizer = Tokenizer.from_json(
            content["tokenizer.json"], manifest.text, where=f"{folder}/tokenizer.json"
        )
        config_class, _ = ARCHITECTURES[manifest.architecture]
        config = build(config_class, manifest.config, where="config", error=ArtifactIntegrityError)
        # Before anything is unpacked, because shapes decide how much memory that takes.
        _require_shapes(manifest.tensors, config.shapes())
        weights = restore(content["weights.safetensors"], manifest.tensors, manifest.format_version)
        model = packed_model(manifest.architecture, config, weights.packed, weights.plain, engine)
    except (DataError, FormatError, KeyError) as error:
        raise ArtifactIntegrityError(f"{folder}: {error}; {_REMEDY}") from None
    loaded = LoadedModel(
        name=manifest.name,
        revision=f"sha256:{manifest.sha256}",
        backend=f"{engine.name}/{engine.variant}",
        manifest=manifest,
        tokenizer=tokenizer,
        model=model,
        residency=model.residency if isinstance(model, Resident) else "packed",
    )
    least_tolerance = GOLDEN_TOLERANCE_INT8 if engine.activations == "int8" else 0.0
    _check_golden(folder, content["golden.json"], loaded, least_tolerance)
    return loaded


def read_manifest(folder: Path) -> Manifest:
    """Read and verify the manifest alone.

    Raises:
        ArtifactVersionError, ArtifactIntegrityError: as `load_artifact`.
    """
    path = folder / _MANIFEST
    if not path.exists():
        raise ArtifactIntegrityError(f"{folder} holds no {_MANIFEST}; give a model's own folder")
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactIntegrityError(f"{path} cannot be read ({error}); {_REMEDY}") from None
    version = value.get("format_version") if isinstance(value, dict) else None
    if not isinstance(version, int) or version < 1:
        raise ArtifactIntegrityError(f"{path}: format_version is {version!r}; {_REMEDY}")
    if version > FORMAT_VERSION:
        raise ArtifactVersionError(
            f"{path}: format version {version} is newer than {FORMAT_VERSION}, the newest this "
            "secondpass reads; upgrade secondpass"
        )
    manifest = build(Manifest, value, where=str(path), error=ArtifactIntegrityError)
    if _manifest_hash(value) != manifest.sha256:
        raise ArtifactIntegrityError(f"{path} was altered after it was written; {_REMEDY}")
    return manifest


def read_verified(folder: Path, name: str) -> bytes:
    """One file of an artifact.

    Raises:
        ArtifactVersionError, ArtifactIntegrityError: as `load_artifact`.
    """
    entry = read_manifest(folder).files.get(name)
    if entry is None:
        raise ArtifactIntegrityError(f"{folder}: the manifest names no {name}; {_REMEDY}")
    return _read_file(folder, name, entry)


def _manifest_hash(value: Mapping[str, Any]) -> str:
    canonical = json.dumps({**value, "sha256": ""}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _read_file(folder: Path, name: str, entry: FileEntry) -> bytes:
    """One file's bytes, verified. The same bytes are used: nothing is read twice."""
    if Path(name).name != name:
        raise ArtifactIntegrityError(f"{folder}: file name {name!r} leaves the folder; {_REMEDY}")
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise ArtifactIntegrityError(
            f"{folder / name} cannot be read ({error}); {_REMEDY}"
        ) from None
    if len(data) != entry.size_bytes:
        raise ArtifactIntegrityError(
            f"{folder / name} has {len(data)} bytes; need {entry.size_bytes}: truncated? {_REMEDY}"
        )
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise ArtifactIntegrityError(f"{folder / name} does not match its sha256; {_REMEDY}")
    return data


def _require_shapes(entries: Mapping[str, TensorEntry], shapes: Shapes) -> None:
    for name, entry in entries.items():
        if name not in shapes:
            raise FormatError(f"tensor {name!r} does not fit the architecture's parameters")
        if entry.shape != shapes[name]:
            raise FormatError(f"tensor {name!r} is {entry.shape}; need {shapes[name]}")


def _golden(parts: ArtifactParts) -> bytes:
    """The reference backend's scores of the golden texts that fit the model, one text at a time."""
    architecture = parts.manifest.architecture
    config = build(
        ARCHITECTURES[architecture][0], parts.manifest.config, where="config", error=ArtifactError
    )
    model = packed_model(
        architecture, config, parts.packed, parts.plain, select_backend("reference")
    )
    texts = [
        {"text": text, "log_prob": _score_text(model, parts.tokenizer, text)}
        for text in parts.golden_texts
        if len(parts.tokenizer.encode(text).ids) < model.max_tokens
    ]
    return json.dumps({"tolerance": GOLDEN_TOLERANCE, "texts": texts}, indent=1).encode()


def _check_golden(
    folder: Path, content: bytes, loaded: LoadedModel, least_tolerance: float
) -> None:
    golden = json.loads(content)
    tolerance = max(golden["tolerance"], least_tolerance)
    for entry in golden["texts"]:
        got = _score_text(loaded.model, loaded.tokenizer, entry["text"])
        if not abs(got - entry["log_prob"]) <= tolerance * abs(entry["log_prob"]):
            raise ArtifactGoldenError(
                f"{folder}: {entry['text']!r} scores {got:.6f} on {loaded.backend}; its golden "
                f"score is {entry['log_prob']:.6f}; try --backend reference and report this"
            )


def _score_text(model: LanguageModel, tokenizer: Tokenizer, text: str) -> float:
    tree = build_tree([tokenizer.encode(text).ids])
    (log_prob,) = model.extend([model.new_state()], [tree.parent[1:]], [tree.token[1:]])
    return float(log_prob.astype(np.float64).sum())
