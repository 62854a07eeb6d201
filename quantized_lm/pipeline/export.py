"""Export stage: student checkpoint -> artifact folder, with golden scores and provenance."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quantized_lm.artifact import ArtifactParts, write_artifact
from quantized_lm.manifest import ModelCard
from quantized_lm.pipeline.checkpoint import read_history
from quantized_lm.pipeline.corpus import open_corpus
from quantized_lm.pipeline.quantize import load_student
from quantized_lm.pipeline.recipe import Recipe
from quantized_lm.pipeline.start import start_revision

# Written for this purpose: everyday, bookish and spontaneous speech, a rare name, an unknown
# character and silence.
GOLDEN_TEXTS = (
    "",
    "yes",
    "the train to the coast leaves at a quarter past seven",
    "she closed the heavy door behind her and listened for a step upon the stairs",
    "so um i think we should make the buttons bigger you know",
    "mister thistlewood had never in his life refused a second cup of tea",
    "colorless green ideas sleep furiously",
    "gate 7 is closed",
)


@dataclass(frozen=True)
class RunFolders:
    """Where the stages before left what becomes an artifact.

    Attributes:
        run: corpus and float model. quantized: of the quantize stage.
    """

    run: Path
    quantized: Path


def export(
    recipe: Recipe,
    recipe_yaml: bytes,
    *,
    folders: RunFolders,
    out: Path,
    default_weights: dict[str, float],
) -> Path:
    """Write the artifact; returns its folder, `out`.

    Args:
        recipe_yaml: the recipe as text, kept in the artifact.
        default_weights: score weights served to requests that name none, tuned on dev lists.

    Raises:
        DataError: a stage left no weights, or those of another recipe.
    """
    corpus = open_corpus(recipe.corpus, folders.run / "corpus")
    student = load_student(recipe, run=folders.run, out=folders.quantized)
    card = ModelCard(
        name=recipe.name,
        architecture=recipe.architecture,
        config=recipe.model,
        default_weights=default_weights,
        license=recipe.license,
        provenance=_provenance(recipe, folders),
    )
    parts = ArtifactParts(
        card=card,
        packed=student.packed,
        plain={name: tensor.numpy() for name, tensor in student.plain.items()},
        tokenizer=corpus.tokenizer,
        golden_texts=GOLDEN_TEXTS,
        recipe_yaml=recipe_yaml,
    )
    write_artifact(out, parts)
    return out


def _provenance(recipe: Recipe, folders: RunFolders) -> dict[str, Any]:
    """Who made the weights, from what, and what was measured on the way."""
    corpus = json.loads((folders.run / "corpus" / "corpus.json").read_text())
    start = {"start": recipe.start, "start_sha256": start_revision(recipe)} if recipe.start else {}
    return {
        **start,
        "training_data": recipe.training_data,
        "training_words": corpus["words"]["train"],
        "corpus_sha256": corpus["key"],
        "seed": recipe.seed,
        "train": read_history(folders.run / "train" / "history.jsonl"),
        "quantize": read_history(folders.quantized / "history.jsonl"),
        "method": recipe.quantize.method,
        "versions": library_versions(),
    }


def library_versions() -> dict[str, str]:
    """Of what made an artifact."""
    return {name: version(name) for name in ("secondpass", "torch", "tokenizers")}
