"""An LSTM goes through every stage, from a text to answers of the service."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from quantized_lm.artifact import LoadedModel, load_artifact
from quantized_lm.ops import BACKENDS
from quantized_lm.pipeline.export import RunFolders, export
from quantized_lm.pipeline.quantize import quantize
from quantized_lm.pipeline.train import train
from quantized_lm.scoring import ScoreRequest, score_lists
from tests.service.serving import request, running, utterance
from tests.tiny import tiny_recipe, write_text

pytestmark = pytest.mark.anyio
TEXTS = ("the cat sees the dog", "the cat likes the dog at night", "")
CONTEXT = ("the dog sees the cat",)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers in two formats, trained, packed and exported."""
    data, out = tmp_path_factory.mktemp("text"), tmp_path_factory.mktemp("run")
    write_text(data)
    recipe = tiny_recipe(dropout=0.1, matrix_lr=0.1, other_lr=0.03, steps=100)
    recipe = replace(
        recipe,
        architecture="lstm",
        model={"vocab_size": 64, "num_layers": 2, "model_dim": 32, "max_tokens": 96},
        quantize=replace(
            recipe.quantize, formats={"layers.0.recurrent.*": "2bit", "*": "4bit:normal"}
        ),
    )
    train(recipe, data=data, out=out)
    quantize(recipe, run=out, out=out / "quantize")
    return export(
        recipe,
        b"name: tiny\n",
        folders=RunFolders(out, out / "quantize"),
        out=out / "tiny",
        default_weights={"lm_scale": 0.7},
    )


@pytest.fixture(scope="module", params=["reference", "cpu"])
def loaded(request: pytest.FixtureRequest, artifact: Path) -> LoadedModel:
    """The artifact, its golden scores checked."""
    reason = BACKENDS[request.param].why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    return load_artifact(artifact, backend=request.param)


def test_what_is_packed_is_counted(loaded: LoadedModel) -> None:
    manifest = loaded.manifest
    assert (manifest.architecture, manifest.max_tokens) == ("lstm", 96)
    assert manifest.parameters == 64 * 32 + 2 * (8 * 32 * 32 + 4 * 32)
    formats = {name: entry.format for name, entry in manifest.tensors.items()}
    assert formats["layers.0.recurrent.o.weight"] == "2bit"
    assert formats["layers.0.input.o.weight"] == "4bit"
    assert formats["layers.1.input.o.bias"] == "float32"


def test_it_has_learned_the_language(loaded: LoadedModel) -> None:
    texts = ("the cat sees the dog", "dog the sees cat the")
    (scores,) = score_lists([ScoreRequest(texts)], loaded)
    likely, unlikely = (score.log_prob for score in scores.scores)
    assert likely > unlikely + 5


async def test_served_scores_are_those_of_the_library(loaded: LoadedModel) -> None:
    (offline,) = score_lists([ScoreRequest(TEXTS, context=CONTEXT)], loaded)
    async with running(loaded) as (client, _):
        body = request(utterance(*TEXTS, id="u", context={"text": list(CONTEXT)}))
        response = await client.post("/v1/rescore", json=body)
    (result,) = response.json()["results"]
    lm = {h["input_rank"]: h["components"]["lm"]["tiny"] for h in result["hypotheses"]}
    expected = [score.log_prob for score in offline.scores]
    assert [lm[rank + 1] for rank in range(len(TEXTS))] == pytest.approx(expected, rel=1e-4)


async def test_a_list_scores_the_same_among_strangers(loaded: LoadedModel) -> None:
    alone = request(utterance(*TEXTS))
    among = request(utterance("the king", context={"text": list(CONTEXT)}), utterance(*TEXTS))
    async with running(loaded) as (client, _):
        replies = [await client.post("/v1/rescore", json=body) for body in (alone, among)]
    first, second = (reply.json()["results"][-1]["hypotheses"] for reply in replies)
    for one, other in zip(first, second, strict=True):
        assert one["text"] == other["text"]
        lm, lm_among = (part["components"]["lm"]["tiny"] for part in (one, other))
        assert lm == pytest.approx(lm_among, abs=1e-4)
