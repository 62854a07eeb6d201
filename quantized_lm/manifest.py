"""manifest.json: what a packed model is, and the sha256 of every other file of its folder.

Knows no architectures: whether the tensors make a model is seen when it is loaded (artifact.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from quantized_lm.combine import Weights
from quantized_lm.errors import (
    ArtifactError,
    ArtifactIntegrityError,
    ArtifactVersionError,
    BackendError,
    FormatError,
    InputError,
    SecondpassError,
)
from quantized_lm.records import build
from quantized_lm.storage import float_bytes
from quantized_lm.tensor_entry import TensorEntry
from quantized_lm.tokenizer import BOUNDARY, BOUNDARY_ID, TextRules

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
# What every scorer does with <s> and </s>: no model is read as one that wants something else.
BOUNDARY_RULE: Mapping[str, object] = MappingProxyType(
    {"symbol": BOUNDARY, "id": BOUNDARY_ID, "scored_first": False, "scored_last": True}
)
_MAX_BYTES = 1 << 24
_REMEDY = "fetch or export the artifact again"
_DEFAULT_WEIGHTS = frozenset(
    {"lm_scale", *(one.name for one in fields(Weights) if isinstance(one.default, int | float))}
)


@dataclass(frozen=True)
class FileEntry:
    """One file of the folder."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class ModelCard:
    """What the maker of a model says of it, each as in `Manifest`; the rest can be counted.

    Raises:
        FormatError: the default weights are none.
    """

    name: str
    architecture: str
    config: dict[str, Any]
    default_weights: dict[str, float]
    license: str
    provenance: dict[str, Any]

    def __post_init__(self) -> None:
        """Refuse weights before anything is made for them."""
        require_weights(self.default_weights)


@dataclass(frozen=True)
class Manifest:
    """What a model is.

    Attributes:
        config: the architecture's config dataclass as a mapping.
        text: how a text is normalized before it is scored.
        boundary: BOUNDARY_RULE: one symbol for <s> and </s>, never scored first, scored last.
        max_tokens: longest text with its context, in tokens.
        default_weights: score weights a request gets that names none: lm_scale and numbers of
            `Weights`.
        parameters: weights of the float architecture, the tied embedding counted once.
        bits_per_weight: bits of weights.safetensors over parameters: scales, level tables, norms
            and header included. Version 1 left the header out.
        size_bytes: all files but the manifest.
        provenance: training data, recipe, quantizer, measurements.
        sha256: of this manifest as canonical JSON with this field empty.

    Raises:
        FormatError: the default weights are none.
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

    def __post_init__(self) -> None:
        """Refuse weights at which every request that names none would fail."""
        require_weights(self.default_weights)

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


def read_manifest(folder: Path) -> Manifest:
    """Read and verify the manifest alone.

    Raises:
        ArtifactVersionError, ArtifactIntegrityError: as `load_artifact`.
    """
    path = folder / MANIFEST
    try:
        if (size := _regular_bytes(path)) > _MAX_BYTES:
            raise ArtifactIntegrityError(
                f"{path} has {size} bytes; need at most {_MAX_BYTES}; {_REMEDY}"
            )
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactIntegrityError(
            f"{folder} holds no {MANIFEST}; give a model's own folder"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactIntegrityError(f"{path} cannot be read ({error}); {_REMEDY}") from None
    version = value.get("format_version") if isinstance(value, dict) else None
    if not isinstance(version, int) or version < 1:
        raise ArtifactIntegrityError(f"{path}: format_version is {version!r}; {_REMEDY}")
    if version > FORMAT_VERSION:
        raise ArtifactVersionError(
            f"{path}: format version {version} is newer than {FORMAT_VERSION}, the newest this "
            "secondpass reads; upgrade secondpass"
        )
    with naming_folder(folder):
        _require_unicode(value)
        manifest = build(Manifest, value, where=str(path), error=ArtifactIntegrityError)
        if manifest_hash(value) != manifest.sha256:
            raise ArtifactIntegrityError(f"{path} was altered after it was written; {_REMEDY}")
        _require_truth(manifest)
    return manifest


def read_verified(folder: Path, name: str) -> bytes:
    """One file of an artifact.

    Raises:
        ArtifactVersionError, ArtifactIntegrityError: as `load_artifact`.
    """
    entry = read_manifest(folder).files.get(name)
    if entry is None:
        raise ArtifactIntegrityError(f"{folder}: the manifest names no {name}; {_REMEDY}")
    return read_file(folder, name, entry)


def read_file(folder: Path, name: str, entry: FileEntry) -> bytes:
    """One file's bytes, verified. The same bytes are used: nothing is read twice.

    Raises:
        ArtifactIntegrityError: it is missing, altered or no file.
    """
    if Path(name).name != name:
        raise ArtifactIntegrityError(f"{folder}: file name {name!r} leaves the folder; {_REMEDY}")
    path = folder / name
    try:
        size = _regular_bytes(path)
        data = path.read_bytes() if size == entry.size_bytes else b""
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        raise ArtifactIntegrityError(f"{path} cannot be read ({error}); {_REMEDY}") from None
    if size != entry.size_bytes:
        raise ArtifactIntegrityError(
            f"{path} has {size} bytes; need {entry.size_bytes}: truncated? {_REMEDY}"
        )
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise ArtifactIntegrityError(f"{path} does not match its sha256; {_REMEDY}")
    return data


def require_weights(default_weights: Mapping[str, float]) -> None:
    """Pass if a request that names no weights can be given these.

    Raises:
        FormatError: there is no such weight, or it cannot have this value.
    """
    if unknown := sorted(set(default_weights) - _DEFAULT_WEIGHTS):
        known = ", ".join(sorted(_DEFAULT_WEIGHTS))
        raise FormatError(f"default_weights has {unknown[0]!r}; known are {known}")
    numbers: dict[str, Any] = dict(default_weights)
    lm_scale = numbers.pop("lm_scale", 0.0)
    try:
        Weights(lm_scales={"lm": lm_scale}, **numbers)
    except InputError as error:
        raise FormatError(f"default_weights{error.pointer}: {error}") from None


def manifest_hash(value: Mapping[str, Any]) -> str:
    """Sha256 of a manifest's fields as canonical JSON, its own hash empty."""
    canonical = json.dumps({**value, "sha256": ""}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


@contextmanager
def naming_folder(folder: Path) -> Iterator[None]:
    """Say which folder a fault is in, whatever form it takes.

    Hashes only tell that a file is as its maker left it. What Python raises itself is among the
    forms: no list of checks is known to be complete, and who loads a model waits for an
    ArtifactError.
    """
    try:
        yield
    except ArtifactError:
        raise
    except BackendError as error:
        raise ArtifactError(f"{folder}: {error}") from None
    except SecondpassError as error:
        raise ArtifactIntegrityError(f"{folder}: {error}; {_REMEDY}") from None
    except MemoryError as error:
        raise ArtifactError(f"{folder} takes more memory than there is; free some") from error
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        told = f"{type(error).__name__}: {error}"
        raise ArtifactIntegrityError(f"{folder} is inconsistent ({told}); {_REMEDY}") from error


def _regular_bytes(path: Path) -> int:
    """Size of a file that ends: a pipe could keep its reader forever, a device fill the memory.

    Raises:
        OSError: it is no such file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path.name} is no regular file")
    return status.st_size


def _require_unicode(value: object) -> None:
    """Pass if what JSON may spell can be sent on: names go into replies, metrics and logs."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise FormatError(f"a text holds {half!a}, half a surrogate; need Unicode") from None


def _require_truth(manifest: Manifest) -> None:
    """Pass if what the manifest says of its files and tensors is so."""
    num_weights = sum(math.prod(entry.shape) for entry in manifest.tensors.values())
    if not manifest.parameters == num_weights > 0:
        raise FormatError(f"parameters is {manifest.parameters}; its tensors have {num_weights}")
    total = sum(entry.size_bytes for entry in manifest.files.values())
    if manifest.size_bytes != total:
        raise FormatError(f"size_bytes is {manifest.size_bytes}; its files have {total}")
    if not 1 <= manifest.bits_per_weight * num_weights / 8 < 1 << 62:
        raise FormatError(f"bits_per_weight is {manifest.bits_per_weight}; need a byte or more")
    stored = manifest.files.get(WEIGHTS)
    if stored and manifest.format_version > 1 and manifest.weights_bytes != stored.size_bytes:
        raise FormatError(
            f"bits_per_weight is {manifest.bits_per_weight}, {manifest.weights_bytes} bytes in "
            f"all; {WEIGHTS} has {stored.size_bytes}"
        )
    if manifest.boundary != BOUNDARY_RULE:
        raise FormatError(f"boundary is {manifest.boundary}; need {dict(BOUNDARY_RULE)}")
