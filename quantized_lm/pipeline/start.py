"""Training that goes on from a packed model: from what its packed weights stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from quantized_lm.artifact import model_folder
from quantized_lm.errors import RecipeError
from quantized_lm.manifest import WEIGHTS, Manifest, read_manifest, read_verified
from quantized_lm.pipeline.recipe import Recipe
from quantized_lm.storage import restore


def start_weights(recipe: Recipe) -> dict[str, Tensor]:
    """The weights that the recipe starts from, by parameter name; none for random ones.

    Raises:
        RecipeError: the recipe asks for another architecture, vocabulary or size.
        ArtifactError: there is no such model, or it is damaged.
    """
    if not recipe.start:
        return {}
    manifest = fitting_manifest(recipe)
    folder = model_folder(recipe.start)
    stored = read_verified(folder, WEIGHTS)
    weights = restore(stored, manifest.tensors, manifest.format_version)
    packed = {name: tensor.dequantize() for name, tensor in weights.packed.items()}
    return {name: torch.from_numpy(array) for name, array in {**packed, **weights.plain}.items()}


def start_revision(recipe: Recipe) -> str:
    """Names the exact weights that the recipe starts from; "" for random ones.

    Raises:
        ArtifactError: there is no such model.
    """
    return read_manifest(model_folder(recipe.start)).sha256 if recipe.start else ""


def model_revisions(recipe: Recipe) -> list[str]:
    """Names every packed model that decides what the recipe makes: its start, its vocabulary.

    Raises:
        ArtifactError: there is no such model.
    """
    names = {recipe.start} - {""}
    if recipe.corpus.vocabulary == "model":
        names |= set(recipe.corpus.vocab_from)
    return sorted(read_manifest(model_folder(name)).sha256 for name in names)


def fitting_manifest(recipe: Recipe) -> Manifest:
    """Of the model that a recipe starts from, if that is the one it trains.

    Raises:
        RecipeError: another architecture, vocabulary or size.
        ArtifactError: there is no such model.
    """
    manifest = read_manifest(model_folder(recipe.start))
    corpus = recipe.corpus
    fields = [
        ("architecture", recipe.architecture, manifest.architecture),
        ("corpus: vocabulary", corpus.vocabulary, "model"),
        ("corpus: vocab_from", list(corpus.vocab_from), [recipe.start]),
        ("corpus: text", corpus.text, manifest.text),
        ("model", recipe.model, manifest.config),
    ]
    for name, asked, wanted in fields:
        if asked != wanted:
            raise RecipeError(
                f"{name} is {asked}; {recipe.start}, which the recipe starts from, has {wanted}: "
                "leave it out"
            )
    return manifest
