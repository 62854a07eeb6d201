"""SECONDPASS_WEIGHTS_FILES: what counts where a request names no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantized_lm.combine import Weights
from quantized_lm.errors import SecondpassError
from quantized_lm.weights_file import write_weights
from service.app import create_app
from service.default_weights import WeightsFileError, read_default_weights, with_weights
from service.settings import Settings
from tests.fakes import fake_loaded
from tests.service.artifacts import act, administering, load_reference
from tests.service.serving import request, running
from tests.service.test_errors import check_problem


def tuned(path: Path, model: str = "tiny", **fields: Any) -> Path:
    write_weights(path, Weights(lm_scales={model: 0.25}, **fields), {})
    return path


@pytest.mark.anyio
async def test_requests_without_weights_get_the_tuned_ones(tmp_path: Path) -> None:
    file = tuned(tmp_path / "w.json", am_scale=0.5, word_bonus=-1.5)
    async with running(weights_files=(file,)) as (client, _):
        usual = (await client.post("/v1/rescore", json=request())).json()
        given = request(weights={"lm_scale": 2.0})
        named = (await client.post("/v1/rescore", json=given)).json()
        shown = (await client.get("/v1/models/tiny")).json()
    assert usual["formula"] == "0.5*am + 0.25*lm[tiny] - 1.5*words"
    assert named["formula"] == "0.5*am + 2*lm[tiny] - 1.5*words"
    assert shown["default_weights"] == {"am_scale": 0.5, "lm_scale": 0.25, "word_bonus": -1.5}


@pytest.mark.anyio
async def test_a_hangup_takes_what_the_file_then_says(
    home: Path, served: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tuned(home.parent / "w.json", "given")
    async with administering(home, served, weights_files=(file,)) as (client, app):
        formulas = []
        with caplog.at_level("INFO", "service.model_control"):
            for fields in ({}, {"word_bonus": 3.0}, {"word_bonus": 3.0}):
                tuned(file, "given", **fields)
                await app.state.core.control.reload_changed()
                reply = await client.post("/v1/rescore", json=request())
                formulas.append(reply.json()["formula"])
    assert formulas == ["1*am + 0.25*lm[given]", *["1*am + 0.25*lm[given] + 3*words"] * 2]
    messages = [record.getMessage() for record in caplog.records]
    assert [one.endswith("is unchanged") for one in messages] == [True, False, True]


@pytest.mark.anyio
@pytest.mark.parametrize("content", [None, "{", '{"weights": {"lm_scales": {"given": 1e999}}}'])
async def test_a_broken_file_is_named_and_what_is_served_stays(
    home: Path, served: Path, content: str | None
) -> None:
    file = tuned(home.parent / "w.json", "given")
    async with administering(home, served, weights_files=(file,)) as (client, app):
        file.unlink()
        if content is not None:
            file.write_text(content)
        for what in ("reload", "load"):
            problem = check_problem(await act(client, "given", what), 422, "invalid_model")
            assert str(file) in problem["detail"]
        await app.state.core.control.reload_changed()
        reply = await client.post("/v1/rescore", json=request())
    assert reply.json()["formula"] == "1*am + 0.25*lm[given]"


@pytest.mark.anyio
async def test_weights_of_no_model_are_not_taken_later_either(served: Path) -> None:
    file = tuned(served.parent / "w.json", "given")
    app = create_app(Settings(models=(served,), weights_files=(file,)), load=load_reference)
    async with app.router.lifespan_context(app):
        core = app.state.core
        tuned(file, "givne")
        await core.control.reload_changed()
        with pytest.raises(WeightsFileError, match="weights of 'givne', which is not served"):
            await core.control.reload("given")
        assert core.registry.get("given").manifest.default_weights["lm_scale"] == 0.25


@pytest.mark.anyio
async def test_weights_of_no_model_are_refused(tmp_path: Path) -> None:
    file = tuned(tmp_path / "w.json", model="tny")
    with pytest.raises(SecondpassError, match="weights of 'tny', which is not served; need one of"):
        async with running(weights_files=(file,)):
            pass
    async with running(weights_files=(file,), model_folder=tmp_path):
        pass  # it may come later


def test_other_models_keep_their_own() -> None:
    model = fake_loaded()
    assert with_weights(model, {"other": {"lm_scale": 1.0}}) is model


@pytest.mark.parametrize("fields", [{"extra": {"ctc": 1.0}}, {"length_norm": "words"}])
def test_what_a_models_defaults_cannot_say_is_refused(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    file = tuned(tmp_path / "w.json", **fields)
    with pytest.raises(
        WeightsFileError, match=f"{next(iter(fields))} is no part of a model's defaults"
    ):
        read_default_weights((file,))


def test_each_model_has_one_file_and_each_file_one_model(tmp_path: Path) -> None:
    first, second = tuned(tmp_path / "a.json"), tuned(tmp_path / "b.json")
    with pytest.raises(WeightsFileError, match=r"b\.json: there are weights of tiny already"):
        read_default_weights((first, second))
    write_weights(second, Weights(lm_scales={"a": 0.1, "b": 0.2}), {})
    with pytest.raises(WeightsFileError, match="lm_scales names a, b; need one model"):
        read_default_weights((second,))
    with pytest.raises(WeightsFileError, match="no weights can be read"):
        read_default_weights((tmp_path / "absent.json",))


def test_the_setting_is_paths_as_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECONDPASS_WEIGHTS_FILES", "a.json:b.json")
    assert Settings().weights_files == (Path("a.json"), Path("b.json"))
