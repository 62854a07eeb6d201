"""Which weights a request gets."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from quantized_lm.artifact import LoadedModel
from quantized_lm.combine import Weights
from quantized_lm.errors import PresetError
from quantized_lm.presets import preset_weights
from service import weighting as module
from service.schemas import RescoreRequest
from service.weighting import KnownWeights, resolve_weights
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


def known(known_weights: KnownWeights, *models: LoadedModel, **fields: Any) -> Weights:
    """As `resolve`, by way of what is known."""
    return known_weights.of(RescoreRequest.model_validate(request(**fields)), models)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"weights": {}},
        {"weights": {"lm_scale": 0.25, "extra": {"ctc": 0.5}}},
        {"weights": {"preset": "nemo", "parameters": {"alpha": 0.5, "beta": 1.0}}},
        {"lms": [{"model": "tiny", "lm_scale": -0.0}]},
        {"lms": [{"model": "tiny", "lm_scale": 0.0}]},
    ],
)
def test_known_weights_are_those_of_the_request(fields: dict[str, Any]) -> None:
    weights = KnownWeights()
    others = {"weights": {"lm_scale": 0.75}}
    for asked in (fields, others, {}, fields):
        found = known(weights, with_defaults(), **asked)
        assert repr(found) == repr(resolve(with_defaults(), **asked))  # tells -0.0 from 0.0
    assert known(weights, with_defaults(), **fields) is found


def test_known_weights_are_not_those_of_a_model_that_was_replaced() -> None:
    weights = KnownWeights()
    old = with_defaults(lm_scale=0.1)
    new = dataclasses.replace(with_defaults(lm_scale=0.9), revision="sha256:new")
    assert known(weights, old).lm_scales == {"tiny": 0.1}
    assert known(weights, new).lm_scales == {"tiny": 0.9}
    assert known(weights, old).lm_scales == {"tiny": 0.1}


def test_the_order_of_models_counts() -> None:
    weights = KnownWeights()
    first = with_defaults(lm_scale=0.1, word_bonus=1.0)
    second = dataclasses.replace(with_defaults(lm_scale=0.9), name="big", revision="sha256:big")
    lms = [{"model": "tiny"}, {"model": "big"}]
    assert known(weights, first, second, lms=lms).word_bonus == 1.0
    assert known(weights, second, first, lms=lms[::-1]).word_bonus == 0.0


def test_weights_that_are_wrong_are_refused_each_time() -> None:
    weights = KnownWeights()
    for _ in range(2):
        with pytest.raises(PresetError):
            known(weights, with_defaults(), weights={"preset": "none such"})


def test_only_so_many_weights_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KNOWN", 3)
    weights = KnownWeights()
    for scale in range(8):
        found = known(weights, with_defaults(), weights={"lm_scale": float(scale)})
        assert found.lm_scales == {"tiny": scale}
        assert len(weights._known) <= 3
