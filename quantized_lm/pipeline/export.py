"""Export stage: student checkpoint -> artifact folder, with golden scores and provenance."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quantized_lm.artifact import FORMAT_VERSION, ArtifactParts, Manifest, write_artifact
from quantized_lm.pipeline.corpus import RULES, open_corpus
from quantized_lm.pipeline.quantize import load_student
from quantized_lm.pipeline.recipe import Recipe
from quantized_lm.tokenizer import BOUNDARY, BOUNDARY_ID

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


def export(
    recipe: Recipe, recipe_yaml: bytes, *, out: Path, default_weights: dict[str, float]
) -> Path:
    """Write the artifact; returns its folder.

    Args:
        recipe_yaml: the recipe's own text, kept in the artifact.
        out: the folder the other stages wrote to; the artifact becomes `out/NAME`.
        default_weights: score weights served to requests that name none, tuned on dev lists.

    Raises:
        DataError: the quantize stage left no checkpoint.
    """
    corpus = open_corpus(out / "corpus")
    student = load_student(recipe, out)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=recipe.name,
        architecture=recipe.architecture,
        config=recipe.model,
        text=RULES,
        boundary={
            "symbol": BOUNDARY,
            "id": BOUNDARY_ID,
            "scored_first": False,
            "scored_last": True,
        },
        max_tokens=recipe.model["max_tokens"],
        default_weights=default_weights,
        tensors={},
        parameters=0,
        bits_per_weight=0.0,
        size_bytes=0,
        license=recipe.license,
        provenance=_provenance(recipe, out),
    )
    parts = ArtifactParts(
        manifest=manifest,
        packed=student.packed,
        plain={name: tensor.numpy() for name, tensor in student.plain.items()},
        tokenizer=corpus.tokenizer,
        golden_texts=GOLDEN_TEXTS,
        recipe_yaml=recipe_yaml,
    )
    write_artifact(out / recipe.name, parts)
    return out / recipe.name


def _provenance(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Who made the weights, from what, and what was measured on the way."""
    corpus = json.loads((out / "corpus" / "corpus.json").read_text())
    return {
        "training_data": recipe.training_data,
        "training_words": corpus["words"]["train"],
        "corpus_sha256": corpus["key"],
        "seed": recipe.seed,
        "train": _rows(out / "train" / "history.jsonl"),
        "quantize": _rows(out / "quantize" / "history.jsonl"),
        "method": "distillation QAT (KL to the float teacher + CE, learned row scales)",
        "versions": {name: version(name) for name in ("secondpass", "torch", "tokenizers")},
    }


def _rows(path: Path) -> list[dict[str, float]]:
    """A stage's learning curve."""
    return [json.loads(row) for row in path.read_text().splitlines()]
