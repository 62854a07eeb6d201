"""A loaded model as the wire shows it."""

from __future__ import annotations

import dataclasses

from quantized_lm.artifact import LoadedModel
from service.served_schemas import ModelDetail, ModelSummary, TensorInfo


def model_summary(model: LoadedModel) -> ModelSummary:
    """What it is, how large, and which weights exactly."""
    manifest = model.manifest
    return ModelSummary(
        id=model.name,
        revision=model.revision,
        architecture=manifest.architecture,
        parameters=manifest.parameters,
        bits_per_weight=manifest.bits_per_weight,
        size_bytes=manifest.size_bytes,
        max_tokens=model.model.max_tokens,
        vocab_size=model.model.vocab_size,
        license=manifest.license,
        backend=model.backend,
        residency=model.residency,
    )


def model_detail(model: LoadedModel) -> ModelDetail:
    """The summary, and every tensor, default weight and the provenance."""
    manifest = model.manifest
    return ModelDetail(
        **model_summary(model).model_dump(),
        text=dataclasses.asdict(manifest.text),
        default_weights=manifest.default_weights,
        tensors={
            name: TensorInfo(
                format=entry.format,
                shape=list(entry.shape),
                group_size=entry.group_size,
                bits_per_weight=entry.bits_per_weight,
                packed_bits_per_weight=entry.packed_bits_per_weight,
                size_bytes=entry.size_bytes,
            )
            for name, entry in manifest.tensors.items()
        },
        provenance=manifest.provenance,
    )
