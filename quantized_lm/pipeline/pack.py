"""Pack a pretrained float model as it is: each matrix rounded to the nearest levels, untrained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from quantized_lm.artifact import ArtifactParts, load_artifact, write_artifact
from quantized_lm.errors import ArtifactGoldenError, DataError, FormatError
from quantized_lm.manifest import MANIFEST, Manifest, ModelCard
from quantized_lm.models.layers import matrix_names
from quantized_lm.ops import AUTO
from quantized_lm.pipeline.evaluate import (
    HeldOutText,
    PerplexityReport,
    compare,
    line_nats,
    lines_alone,
)
from quantized_lm.pipeline.export import GOLDEN_TEXTS, library_versions
from quantized_lm.pipeline.gpt2_folder import PretrainedGpt2
from quantized_lm.pipeline.progress import track
from quantized_lm.quant.formats import Grid
from quantized_lm.quant.quantizers.rtn import round_to_nearest
from quantized_lm.quant.tensor import QuantizedTensor
from quantized_lm.tokenizer import BOUNDARY_ID

_EMBEDDING = "embedding.weight"
_ARCHITECTURE = "gpt2"
# To go on with text of one's own: rates well below those of training from nothing.
_TRAIN = {"batch_windows": 16, "matrix_lr": 0.004, "other_lr": 0.0008, "weight_decay": 0.02}
_QUANTIZE = {"batch_windows": 16, "matrix_lr": 0.002, "other_lr": 0.0005, "kl_weight": 0.9}


@dataclass(frozen=True)
class Packing:
    """What becomes of the matrices.

    Attributes:
        body: of projections. embedding: of the embedding, which is the output layer too. Both as
            recipes write formats: "8bit", or "4bit:normal".
        group_size: columns that share a scale; None for one scale per row.
    """

    body: str
    embedding: str
    group_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse formats that there are not, and groups of nothing."""
        if self.group_size is not None and self.group_size < 1:
            raise FormatError(f"group_size is {self.group_size}; need at least 1")
        for choice in (self.body, self.embedding):
            Grid.parse(choice)

    def grid(self, name: str) -> Grid:
        """Of a matrix."""
        choice = self.embedding if name == _EMBEDDING else self.body
        return replace(Grid.parse(choice), group_size=self.group_size)


@dataclass(frozen=True)
class Sample:
    """Texts to compare on, as tokens."""

    text: HeldOutText
    words: int


def sample_of(given: PretrainedGpt2, texts: Iterable[str]) -> Sample:
    """Tokens of texts, those left out in which nothing is said.

    Raises:
        DataError: all are.
    """
    encoded = [one for one in map(given.tokenizer.encode, texts) if one.ids]
    if not encoded:
        raise DataError("no words in the texts to compare on; need some")
    lines = [(*one.ids, BOUNDARY_ID) for one in encoded]
    text = lines_alone("texts", lines, given.model.max_tokens)
    return Sample(text, sum(len(one.words) for one in encoded))


def pack(
    given: PretrainedGpt2,
    packing: Packing,
    out: Path,
    *,
    source: str,
    license_name: str,
    default_weights: dict[str, float],
) -> Manifest:
    """Write the artifact, with the folder's name as its own.

    Args:
        source: where the weights came from, for people. license_name: theirs.
        default_weights: served to requests that name none.

    Raises:
        DataError: `out` is a folder of something else.
        FormatError: a weight is not finite or too large for its scale, or a default weight is none.
    """
    require_free(out)
    card = ModelCard(
        name=out.resolve().name,
        architecture=_ARCHITECTURE,
        config=asdict(given.model.config),
        default_weights=default_weights,
        license=license_name,
        provenance={
            "made_by": "secondpass pack",
            "source": source,
            "source_sha256": given.sha256,
            "versions": library_versions(),
        },
    )
    matrices = matrix_names(given.model)
    packed: dict[str, QuantizedTensor] = {}
    plain: dict[str, NDArray[np.float32]] = {}
    for name, parameter in track(list(given.model.named_parameters()), "tensors"):
        weight = parameter.detach().numpy()
        if name in matrices:
            packed[name] = round_to_nearest(weight, packing.grid(name))
        else:
            plain[name] = weight
    parts = ArtifactParts(
        card=card,
        packed=packed,
        plain=plain,
        tokenizer=given.tokenizer,
        golden_texts=GOLDEN_TEXTS,
        recipe_yaml=_recipe(given, packing),
    )
    return write_artifact(out, parts)


def _recipe(given: PretrainedGpt2, packing: Packing) -> bytes:
    """What a recipe that starts from the model takes from it: all but text and length."""
    config = given.model.config
    base = {
        "seed": 0,
        "architecture": _ARCHITECTURE,
        "model": asdict(config),
        "corpus": {"vocab_size": config.vocab_size, "text": asdict(given.tokenizer.rules)},
        "train": {"window": min(256, config.max_tokens), **_TRAIN},
        "quantize": {
            "formats": {_EMBEDDING: packing.embedding, "*": packing.body},
            **_QUANTIZE,
        },
    }
    return yaml.safe_dump(base, sort_keys=False).encode()


def require_free(out: Path) -> None:
    """Pass if a model can be written to a folder: there is none, an empty one, or a model.

    Raises:
        DataError: it holds something else, or is a file.
    """
    if out.is_dir() and not (out / MANIFEST).exists() and any(out.iterdir()):
        raise DataError(f"{out}: holds something else than a model; need a new folder")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; need a new folder")


def packing_cost(
    given: PretrainedGpt2, artifact: Path, sample: Sample, *, backend: str = AUTO
) -> PerplexityReport:
    """What the packed model, as it is served, says of texts, beside the float model.

    Args:
        backend: of the packed model, as `load_artifact` takes it.

    Raises:
        DataError: the backend comes to other scores than the reference, more than rounding
            activations to 8 bits may cost.
        BackendError: the backend cannot be used here.
    """
    try:
        loaded = load_artifact(artifact, backend=backend)
    except ArtifactGoldenError as error:
        raise DataError(
            f"{artifact} is written, but what runs through it loses too much in 8 bits: "
            f"{str(error).rpartition(';')[0]}; serve it with --backend reference, or name it as "
            "`start` of a recipe and train it"
        ) from None
    return compare(
        line_nats(loaded.model, sample.text, f"packed, {loaded.backend}"),
        line_nats(given.model, sample.text, "float"),
        sample.text,
        backend=loaded.backend,
        words=sample.words,
    )
