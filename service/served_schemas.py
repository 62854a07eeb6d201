"""The wire contract of what a server has and is: models, limits, health."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quantized_lm.ops.backend import Residency
from service.lattice_schemas import MAX_LATTICES
from service.schemas import (
    MAX_CONTEXT_TEXTS,
    MAX_EXTRA_TERMS,
    MAX_HYPOTHESES,
    MAX_LMS,
    MAX_NAME_CHARS,
    MAX_SCORE,
    MAX_TEXT_CHARS,
    MAX_UTTERANCES,
    MAX_WEIGHT,
    Wire,
)


class TensorInfo(Wire):
    """How one tensor is stored."""

    format: str
    shape: list[int]
    group_size: int = Field(description="Weights along a row that share a scale; 0 if unpacked.")
    bits_per_weight: float
    packed_bits_per_weight: float = Field(description="Once decoded at load.")
    size_bytes: int


class ModelSummary(Wire):
    """A loaded model."""

    id: str
    revision: str
    architecture: str
    parameters: int
    bits_per_weight: float = Field(description="Scales, codebooks and norms included.")
    size_bytes: int
    max_tokens: int
    vocab_size: int
    license: str
    backend: str = Field(description="The kernels that run it.")
    residency: Residency = Field(
        description="How its matrices lie in the device's memory: `packed`, read as codes, or "
        "`expanded`, a byte a weight. Scores do not depend on it."
    )


class ModelDetail(ModelSummary):
    """A loaded model, tensor by tensor."""

    text: dict[str, str | bool]
    default_weights: dict[str, float]
    tensors: dict[str, TensorInfo]
    provenance: dict[str, object]


class ModelList(Wire):
    """Every loaded model."""

    models: list[ModelSummary]


class AdminModel(Wire):
    """A model that is served or could be."""

    name: str
    state: Literal["loaded", "loadable"]
    is_busy: bool = Field(description="Whether it is being loaded or unloaded right now.")
    revision: str | None = Field(description="Of what is served; null if it is not.")
    last_error: str | None = Field(description="Why the last attempt to load it failed.")


class AdminModelList(Wire):
    """Every model that is served or could be."""

    models: list[AdminModel]


class Limits(Wire):
    """What a request may hold."""

    body_bytes: int
    lattice_body_bytes: int = Field(description="Also of what a gzip body unpacks to.")
    lattice_arcs: int
    tree_nodes_per_utterance: int
    default_deadline_ms: float = Field(description="Of a request that names none.")
    deadline_ms: float = Field(description="Latest that a request may ask for.")
    queued_requests: int = Field(description="That wait for the engine; any more are a 429.")
    queued_tokens: int = Field(description="Tree nodes that wait, likewise.")
    tokens_per_text: dict[str, int] = Field(description="By model, context included.")
    utterances: int = MAX_UTTERANCES
    hypotheses_per_utterance: int = MAX_HYPOTHESES
    texts: int = MAX_HYPOTHESES
    text_chars: int = MAX_TEXT_CHARS
    context_texts: int = MAX_CONTEXT_TEXTS
    lattices: int = MAX_LATTICES
    lms: int = MAX_LMS
    extra_terms: int = MAX_EXTRA_TERMS
    name_chars: int = MAX_NAME_CHARS
    abs_score: float = MAX_SCORE
    abs_weight: float = MAX_WEIGHT


class ProbeStatus(Wire):
    """What a health probe found."""

    status: Literal["live", "started", "ready", "draining"]
