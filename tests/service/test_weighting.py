"""Which weights a request gets."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from quantized_lm.artifact import LoadedModel
from quantized_lm.combine import Weights
from quantized_lm.errors import PresetError
from quantized_lm.presets import preset_weights
from service.schemas import RescoreRequest
from service.weighting import resolve_weights
from tests.fakes import fake_loaded
from tests.service.serving import request


def with_defaults(**defaults: float) -> LoadedModel:
    """A model "tiny" with these default weights."""
    loaded = fake_loaded()
    manifest = dataclasses.replace(loaded.manifest, default_weights=defaults)
    return dataclasses.replace(loaded, manifest=manifest)


def resolve(*models: LoadedModel, **fields: Any) -> Weights:
    """The weights of a request with these fields."""
    return resolve_weights(RescoreRequest.model_validate(request(**fields)), models)


def test_without_any_weight_am_scale_is_1_and_lm_scale_one_half() -> None:
    assert resolve(with_defaults()) == Weights(am_scale=1.0, lm_scales={"tiny": 0.5})


def test_the_models_defaults_come_before_ours() -> None:
    model = with_defaults(lm_scale=0.7, word_bonus=0.1)
    assert resolve(model) == Weights(lm_scales={"tiny": 0.7}, word_bonus=0.1)


def test_given_fields_come_before_the_models_defaults_and_null_is_not_given() -> None:
    model = with_defaults(lm_scale=0.7, word_bonus=0.1)
    weights = resolve(model, weights={"lm_scale": 0.0, "am_scale": None, "graph_scale": 2})
    assert weights == Weights(graph_scale=2.0, lm_scales={"tiny": 0.0}, word_bonus=0.1)


def test_a_preset_replaces_the_models_defaults() -> None:
    model = with_defaults(lm_scale=0.7, word_bonus=0.1)
    chosen = {"preset": "kaldi", "parameters": {"weight": 0.8}}
    assert resolve(model, weights=chosen) == preset_weights("kaldi", {"weight": 0.8}, lm="tiny")


def test_a_given_field_comes_before_the_preset() -> None:
    weights = resolve(fake_loaded(), weights={"preset": "espnet", "token_bonus": -0.2})
    expected = preset_weights("espnet", {}, lm="tiny")
    assert weights == dataclasses.replace(expected, token_bonus=-0.2)


def test_a_preset_that_lacks_a_parameter_says_which() -> None:
    with pytest.raises(PresetError) as caught:
        resolve(fake_loaded(), weights={"preset": "nemo", "parameters": {"alpha": 1.0}})
    assert caught.value.pointer == "/weights/parameters/beta"


def test_each_of_several_lms_has_its_own_scale_or_the_shared_one_or_its_models() -> None:
    models = fake_loaded("one"), dataclasses.replace(with_defaults(lm_scale=0.9), name="two")
    lms = [{"model": "one", "lm_scale": 0.1}, {"model": "two"}]
    assert resolve(*models, lms=lms).lm_scales == {"one": 0.1, "two": 0.9}
    shared = resolve(*models, lms=lms, weights={"lm_scale": 0.3})
    assert shared.lm_scales == {"one": 0.1, "two": 0.3}
