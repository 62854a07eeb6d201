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
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import ArtifactError, FormatError
from quantized_lm.files import write_atomic
from quantized_lm.golden import GOLDEN_TOLERANCE_INT8, golden_json, read_golden, require_golden
from quantized_lm.manifest import (
    BOUNDARY_RULE,
    FORMAT_VERSION,
    MANIFEST,
    WEIGHTS,
    FileEntry,
    Manifest,
    ModelCard,
    manifest_hash,
    naming_folder,
    read_file,
    read_manifest,
)
from quantized_lm.memory import available_bytes
from quantized_lm.models import ARCHITECTURES
from quantized_lm.models.base import LanguageModel, Resident
from quantized_lm.models.config import ModelConfig
from quantized_lm.models.packed import packed_model
from quantized_lm.ops import AUTO, select_backend
from quantized_lm.ops.backend import Residency
from quantized_lm.quant.tensor import QuantizedTensor
from quantized_lm.records import build
from quantized_lm.storage import AUTO as SMALLEST
from quantized_lm.storage import restore, store
from quantized_lm.tokenizer import Tokenizer

DEFAULT_MODEL = "en-small"  # of those that ship with the package


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
    """What goes into an artifact.

    Attributes:
        coding: how packed tensors are stored; key of CODINGS, or "auto" for the smallest of each.
    """

    card: ModelCard
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
    if not (home / name / MANIFEST).exists():
        known = ", ".join(sorted(path.parent.name for path in home.glob(f"*/{MANIFEST}")))
        raise ArtifactError(f"no model {name!r} ships with secondpass; bundled: {known or 'none'}")
    return home / name


def model_folder(name: str | Path | None = None) -> Path:
    """Where a model is: the folder of that name, or the bundled model; None is the usual one.

    Raises:
        ArtifactError: neither.
    """
    if name is None:
        return bundled_path(DEFAULT_MODEL)
    if (Path(name) / MANIFEST).exists():
        return Path(name)
    try:
        return bundled_path(str(name))
    except ArtifactError as error:
        raise ArtifactError(f"{name} holds no {MANIFEST}, and {error}") from None


def write_artifact(folder: Path, parts: ArtifactParts) -> Manifest:
    """Write the folder, the manifest last, so that a folder with a manifest is whole.

    An artifact that is there already stays whole until there is all of another.

    Returns:
        The manifest.

    Raises:
        FormatError: there is no such coding, or no golden text fits the model.
    """
    stored = store(parts.packed, parts.plain, parts.coding)
    content = {
        WEIGHTS: stored.content,
        "tokenizer.json": parts.tokenizer.to_json(),
        "golden.json": _golden(parts),
        "recipe.yaml": parts.recipe_yaml,
    }
    parameters = sum(math.prod(entry.shape) for entry in stored.entries.values())
    card = parts.card
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=card.name,
        architecture=card.architecture,
        config=card.config,
        text=parts.tokenizer.rules,
        boundary=dict(BOUNDARY_RULE),
        max_tokens=card.config["max_tokens"],
        default_weights=card.default_weights,
        tensors=stored.entries,
        parameters=parameters,
        bits_per_weight=8 * len(stored.content) / parameters,
        size_bytes=sum(map(len, content.values())),
        license=card.license,
        provenance=card.provenance,
        files={
            name: FileEntry(hashlib.sha256(data).hexdigest(), len(data))
            for name, data in content.items()
        },
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for name, data in content.items():
        write_atomic(folder / name, data)
    manifest = replace(manifest, sha256=manifest_hash(asdict(manifest)))
    write_atomic(folder / MANIFEST, json.dumps(asdict(manifest), indent=1).encode())
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
        ArtifactError: it takes more memory than there is, or this backend has no kernel for it.
        BackendError: the backend or the device cannot be used here.
    """
    manifest = read_manifest(folder)
    engine = select_backend(backend, device=device, threads=threads, pins=pins)
    with naming_folder(folder):
        # Before anything is read or unpacked, because sizes decide how much memory that takes.
        config = _config_of(manifest)
        _require_memory(folder, manifest, config)
        content = {name: read_file(folder, name, entry) for name, entry in manifest.files.items()}
        tokenizer = _tokenizer(manifest, config, content)
        weights = restore(_part(content, WEIGHTS), manifest.tensors, manifest.format_version)
        model = packed_model(manifest.architecture, config, weights.packed, weights.plain, engine)
        backend_name = f"{engine.name}/{engine.variant}"
        require_golden(
            read_golden(_part(content, "golden.json")),
            model,
            tokenizer,
            least_tolerance=GOLDEN_TOLERANCE_INT8 if engine.activations == "int8" else 0.0,
            where=f"{folder} on {backend_name}",
        )
    return LoadedModel(
        name=manifest.name,
        revision=f"sha256:{manifest.sha256}",
        backend=backend_name,
        manifest=manifest,
        tokenizer=tokenizer,
        model=model,
        residency=model.residency if isinstance(model, Resident) else "packed",
    )


def _part(content: Mapping[str, bytes], name: str) -> bytes:
    if name not in content:
        raise FormatError(f"the manifest names no {name}")
    return content[name]


def _config_of(manifest: Manifest) -> ModelConfig:
    """The architecture's config, which fits the tensors."""
    if manifest.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise FormatError(f"architecture is {manifest.architecture!r}; known are {known}")
    config_class, _ = ARCHITECTURES[manifest.architecture]
    config: ModelConfig = build(config_class, manifest.config, where="config", error=FormatError)
    if config.max_tokens != manifest.max_tokens:
        raise FormatError(
            f"max_tokens is {manifest.max_tokens}; its config has {config.max_tokens}"
        )
    entries = manifest.tensors
    if config.num_layers > len(entries):
        raise FormatError(f"num_layers is {config.num_layers}; there are {len(entries)} tensors")
    shapes = config.shapes()
    if odd := sorted(set(shapes) ^ set(entries)):
        raise FormatError(f"tensor {odd[0]!r} does not fit the architecture's parameters")
    for name, entry in entries.items():
        if entry.shape != shapes[name]:
            raise FormatError(f"tensor {name!r} is {entry.shape}; need {shapes[name]}")
    return config


def _require_memory(folder: Path, manifest: Manifest, config: ModelConfig) -> None:
    """Pass if the files, what they unpack to and what follows from sizes alone fit into memory.

    Raises:
        ArtifactError: they do not.
    """
    needed = sum(entry.size_bytes for entry in manifest.files.values())
    needed += sum(entry.decoded_bytes for entry in manifest.tensors.values())
    needed += config.table_bytes
    available = available_bytes()
    if available is not None and needed > available:
        raise ArtifactError(
            f"{folder} takes {needed >> 20} MiB to load; {available >> 20} MiB of memory are left: "
            "free some, or load a smaller model"
        )


def _tokenizer(manifest: Manifest, config: ModelConfig, content: Mapping[str, bytes]) -> Tokenizer:
    """The vocabulary, each token of which the model knows."""
    name = "tokenizer.json"
    tokenizer = Tokenizer.from_json(_part(content, name), manifest.text, where=name)
    if tokenizer.largest_id >= config.vocab_size:
        raise FormatError(
            f"{name} has a token of id {tokenizer.largest_id}; need ids below vocab_size "
            f"{config.vocab_size}"
        )
    return tokenizer


def _golden(parts: ArtifactParts) -> bytes:
    """The reference backend's scores of the golden texts."""
    architecture = parts.card.architecture
    config = build(
        ARCHITECTURES[architecture][0], parts.card.config, where="config", error=ArtifactError
    )
    model = packed_model(
        architecture, config, parts.packed, parts.plain, select_backend("reference")
    )
    return golden_json(parts.golden_texts, model, parts.tokenizer)
