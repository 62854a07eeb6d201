"""Models that come, change and go while others are being served."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import threading
import weakref
from pathlib import Path
from typing import Any

import httpx
import pytest

from quantized_lm.artifact import LoadedModel
from quantized_lm.manifest import read_manifest
from service.model_control import MARGIN_BYTES, loading_bytes
from tests.conftest import TinyRun
from tests.fakes import TableModel
from tests.service.artifacts import (
    act,
    administering,
    copy_of,
    load_reference,
    names_of,
    rescored_by,
    revision,
    value,
)
from tests.service.serving import request
from tests.service.test_errors import check_problem

pytestmark = pytest.mark.anyio


async def test_a_model_is_loaded_served_and_unloaded(
    tiny_run: TinyRun, home: Path, served: Path
) -> None:
    folder = copy_of(tiny_run.artifact, home / "second", note="another")
    async with administering(home, served) as (client, app):
        listed = (await client.get("/v1/admin/models")).json()["models"]
        assert [(one["name"], one["state"]) for one in listed] == [
            ("given", "loaded"),
            ("second", "loadable"),
        ]
        loaded = await act(client, "second", "load")
        assert loaded.status_code == 200, loaded.text
        assert loaded.json() == {
            "name": "second",
            "state": "loaded",
            "is_busy": False,
            "revision": revision(folder),
            "last_error": None,
        }
        assert await names_of(client) == ["given", "second"]
        assert await rescored_by(client, "second") == revision(folder)
        assert value(app, "rescore_model_loaded", model="second") == 1.0
        assert (value(app, "rescore_model_load_seconds", model="second") or 0.0) > 0.0
        assert (await act(client, "second", "unload")).json()["state"] == "loadable"
        assert await names_of(client) == ["given"]
        gone = await client.post("/v1/rescore", json=request(model="second"))
        assert "given" in check_problem(gone, 404, "model_not_found")["detail"]
        assert value(app, "rescore_model_loaded", model="second") is None
        assert value(app, "rescore_model_load_seconds", model="second") is None
        assert value(app, "rescore_model_bytes", model="second", kind="weights") is None
        assert 'model="second",revision' not in (await client.get("/metrics")).text
        assert value(app, "rescore_model_reloads_total", model="second", outcome="ok") == 1.0
        unloaded = value(app, "rescore_model_reloads_total", model="second", outcome="unloaded")
        assert unloaded == 1.0


async def test_a_reload_takes_the_new_revision_and_its_metrics(
    tiny_run: TinyRun, home: Path, served: Path
) -> None:
    async with administering(home, served) as (client, app):
        old = revision(served)
        copy_of(tiny_run.artifact, served, note="newer")
        assert await rescored_by(client, "given") == old
        assert (await act(client, "given", "reload")).json()["revision"] == revision(served)
        assert await rescored_by(client, "given") == revision(served) != old
        text = (await client.get("/metrics")).text
        assert revision(served) in text
        assert old not in text
        assert (value(app, "rescore_model_load_seconds", model="given") or 0.0) > 0.0
        assert value(app, "rescore_model_loaded", model="given") == 1.0


async def test_a_load_of_what_is_served_does_nothing_until_its_folder_changes(
    tiny_run: TinyRun, home: Path, served: Path
) -> None:
    calls: list[Path] = []

    def load(folder: Path, backend: str) -> LoadedModel:
        calls.append(folder)
        return load_reference(folder, backend)

    async with administering(home, served, load=load) as (client, _):
        assert (await act(client, "given", "load")).status_code == 200
        assert len(calls) == 1
        copy_of(tiny_run.artifact, served, note="newer")
        assert (await act(client, "given", "load")).json()["revision"] == revision(served)
        assert len(calls) == 2


async def check_kept(client: httpx.AsyncClient, app: Any, old: str, problem: Any) -> None:
    """The old model is served, its metrics are there, and the failure is told and counted."""
    assert await rescored_by(client, "given") == old
    assert old in (await client.get("/metrics")).text
    assert value(app, "rescore_model_reloads_total", model="given", outcome="failed") == 1.0
    assert value(app, "rescore_model_reloads_total", model="given", outcome="ok") is None
    (listed,) = (await client.get("/v1/admin/models")).json()["models"]
    assert (listed["state"], listed["is_busy"]) == ("loaded", False)
    assert (listed["revision"], listed["last_error"]) == (old, problem["detail"])


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json", "manifest.json"])
async def test_a_damaged_file_is_named_and_the_old_model_stays(
    home: Path, served: Path, name: str
) -> None:
    async with administering(home, served) as (client, app):
        old = revision(served)
        (served / name).write_bytes(b"{}")
        problem = check_problem(await act(client, "given", "reload"), 422, "invalid_model")
        assert name in problem["detail"]
        await check_kept(client, app, old, problem)


async def test_a_model_that_does_not_reproduce_its_golden_scores_is_not_served(
    tiny_run: TinyRun, home: Path, served: Path
) -> None:
    async with administering(home, served) as (client, app):
        old = revision(served)
        copy_of(tiny_run.artifact, served, golden_shift=1.0)
        problem = check_problem(await act(client, "given", "reload"), 422, "invalid_model")
        assert "golden" in problem["detail"]
        await check_kept(client, app, old, problem)


async def test_a_model_that_fails_its_first_pass_is_not_served(home: Path, served: Path) -> None:
    models: list[LoadedModel] = []

    def load(folder: Path, backend: str) -> LoadedModel:
        loaded = load_reference(folder, backend)
        error = RuntimeError("broken kernels") if models else None
        models.append(dataclasses.replace(loaded, model=TableModel(max_tokens=96, error=error)))
        return models[-1]

    async with administering(home, served, load=load) as (client, app):
        check_problem(await act(client, "given", "reload"), 500, "internal")
        assert app.state.core.registry.get("given") is models[0]
        assert value(app, "rescore_model_reloads_total", model="given", outcome="failed") == 1.0


async def test_without_memory_nothing_is_loaded(
    tiny_run: TinyRun, home: Path, served: Path
) -> None:
    manifest = read_manifest(copy_of(tiny_run.artifact, home / "second"))
    needed = loading_bytes(manifest) + MARGIN_BYTES
    assert loading_bytes(manifest) > 4 * manifest.parameters
    async with administering(home, served) as (client, app):
        app.state.core.control._available = lambda: needed - 1
        problem = check_problem(await act(client, "second", "load"), 409, "memory_budget")
        assert "unload another model" in problem["detail"]
        app.state.core.control._available = lambda: needed
        assert (await act(client, "second", "load")).status_code == 200
        app.state.core.control._available = lambda: None
        assert (await act(client, "second", "reload")).status_code == 200


async def test_a_model_that_outgrows_the_budget_is_refused(
    tiny_run: TinyRun, home: Path, served: Path
) -> None:
    copy_of(tiny_run.artifact, home / "second")

    def load(folder: Path, backend: str) -> LoadedModel:
        loaded = load_reference(folder, backend)
        model = TableModel(max_tokens=64 if folder == served else 65)
        return dataclasses.replace(loaded, model=model)

    async with administering(home, served, load=load, budget_tokens=65) as (client, _):
        problem = check_problem(await act(client, "second", "load"), 422, "invalid_model")
    assert "budget_tokens is 65" in problem["detail"]


async def test_only_what_is_served_can_be_reloaded_or_unloaded_and_not_the_last(
    tiny_run: TinyRun, home: Path, served: Path
) -> None:
    copy_of(tiny_run.artifact, home / "second")
    async with administering(home, served) as (client, _):
        for what in ("reload", "unload"):
            check_problem(await act(client, "second", what), 404, "model_not_found")
        problem = check_problem(await act(client, "given", "unload"), 409, "last_model")
        assert "given is the only model" in problem["detail"]
        await act(client, "second", "load")
        assert (await act(client, "given", "unload")).status_code == 200
        assert await names_of(client) == ["second"]
        check_problem(await act(client, "second", "unload"), 409, "last_model")
        assert (await act(client, "given", "load")).status_code == 200


class Gated:
    """A loader that stops until it is told to go on, from the second load on."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, folder: Path, backend: str) -> LoadedModel:
        """Load a model, and hand it over once the gate is open."""
        model = load_reference(folder, backend)
        self.entered.set()
        assert self.gate.wait(30.0)
        return model

    def shut(self) -> None:
        """Make the next load wait."""
        self.gate.clear()
        self.entered.clear()


async def test_two_at_once_are_refused_while_requests_are_answered(
    tiny_run: TinyRun, home: Path, served: Path
) -> None:
    copy_of(tiny_run.artifact, home / "second")
    load = Gated()
    async with administering(home, served, load=load) as (client, _):
        load.shut()
        first = asyncio.create_task(act(client, "second", "load"))
        try:
            await asyncio.to_thread(load.entered.wait, 30.0)
            refused = await act(client, "second", "load")
            check_problem(refused, 409, "model_loading")
            assert refused.headers["Retry-After"] == "1"
            listed = (await client.get("/v1/admin/models")).json()["models"]
            assert [one["is_busy"] for one in listed] == [False, True]
            # What is half loaded is not there yet, and what is there is served.
            assert await names_of(client) == ["given"]
            assert await rescored_by(client, "given") == revision(served)
        finally:
            load.gate.set()
        assert (await first).status_code == 200
        assert await names_of(client) == ["given", "second"]
        assert (await act(client, "second", "reload")).status_code == 200


async def test_a_model_is_swapped_only_once_it_is_checked(
    tiny_run: TinyRun, home: Path, served: Path
) -> None:
    load = Gated()
    async with administering(home, served, load=load) as (client, app):
        old = revision(served)
        copy_of(tiny_run.artifact, served, note="newer")
        load.shut()
        reload = asyncio.create_task(act(client, "given", "reload"))
        try:
            await asyncio.to_thread(load.entered.wait, 30.0)
            assert await rescored_by(client, "given") == old
            assert old in (await client.get("/metrics")).text
            check_problem(await act(client, "given", "unload"), 409, "model_loading")
        finally:
            load.gate.set()
        assert (await reload).status_code == 200
        assert await rescored_by(client, "given") == revision(served)
        assert value(app, "rescore_model_loaded", model="given") == 1.0


async def test_requests_in_flight_keep_their_model_which_is_freed_after_the_last(
    tiny_run: TinyRun, home: Path, served: Path
) -> None:
    tables: list[weakref.ref[TableModel]] = []
    gates: list[threading.Event] = []

    def load(folder: Path, backend: str) -> LoadedModel:
        table = TableModel(max_tokens=96, seed=len(tables))
        tables.append(weakref.ref(table))
        gates.append(table.gate)
        return dataclasses.replace(load_reference(folder, backend), model=table)

    gc.collect()
    gc.disable()  # the server freezes what it has loaded, so it has to go without the collector
    try:
        async with administering(home, served, load=load) as (client, app):
            old = revision(served)
            before = (await client.post("/v1/rescore", json=request())).json()["results"]
            entered = tables[0]().entered  # type: ignore[union-attr]
            entered.clear()
            gates[0].clear()
            running = [asyncio.create_task(client.post("/v1/rescore", json=request()))]
            await asyncio.to_thread(entered.wait, 30.0)
            running.append(asyncio.create_task(client.post("/v1/rescore", json=request())))
            while value(app, "rescore_queue_requests", model="given") != 1.0:
                await asyncio.sleep(0)
            copy_of(tiny_run.artifact, served, note="newer")
            assert (await act(client, "given", "reload")).status_code == 200
            # Served from now on, though the engine is still busy with the old one.
            assert (await client.get("/v1/models/given")).json()["revision"] == revision(served)
            assert tables[0]() is not None
            gates[0].set()
            for reply in await asyncio.gather(*running):
                assert reply.json()["revision"] == old
                assert reply.json()["results"] == before
            running.clear()
            after = (await client.post("/v1/rescore", json=request())).json()
            assert after["revision"] == revision(served)
            assert after["results"] != before
            give_up_s = asyncio.get_running_loop().time() + 30.0
            while tables[0]() is not None and asyncio.get_running_loop().time() < give_up_s:
                await asyncio.sleep(0.01)
            assert tables[0]() is None
            assert tables[1]() is not None
    finally:
        for gate in gates:
            gate.set()
        gc.enable()


async def test_a_hangup_reloads_what_has_changed_and_logs_a_line_for_each(
    tiny_run: TinyRun, home: Path, served: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same = copy_of(tiny_run.artifact, home.parent / "same")
    broken = copy_of(tiny_run.artifact, home.parent / "broken")
    damaged = copy_of(tiny_run.artifact, home.parent / "damaged")
    async with administering(home, served, same, broken, damaged) as (client, app):
        kept = revision(broken)
        (damaged / "manifest.json").write_bytes(b"{}")
        copy_of(tiny_run.artifact, served, note="newer")
        copy_of(tiny_run.artifact, broken, golden_shift=1.0)
        with caplog.at_level(logging.INFO, "service"):
            await app.state.core.control.reload_changed()
        lines = [record.getMessage() for record in caplog.records if "model " in record.msg]
        assert await rescored_by(client, "given") == revision(served)
        assert await rescored_by(client, "broken") == kept
    by_name = {line.split()[1]: line for line in lines}
    assert len(lines) == len(by_name) == 4
    assert by_name["given"] == f"model given is {revision(served)}"
    assert by_name["same"] == "model same is unchanged"
    assert by_name["broken"].startswith("model broken is kept as it is: ")
    assert "golden" in by_name["broken"]
    assert "manifest.json" in by_name["damaged"]
    for name, outcome in (("given", "ok"), ("broken", "failed"), ("damaged", "failed")):
        assert value(app, "rescore_model_reloads_total", model=name, outcome=outcome) == 1.0


async def test_a_hangup_amid_a_load_finds_what_has_changed_since_it_began(
    tiny_run: TinyRun, home: Path, served: Path
) -> None:
    load = Gated()
    async with administering(home, served, load=load) as (client, app):
        load.shut()
        reload = asyncio.create_task(act(client, "given", "reload"))
        try:
            await asyncio.to_thread(load.entered.wait, 30.0)
            copy_of(tiny_run.artifact, served, note="newer")
            hangup = asyncio.create_task(app.state.core.control.reload_changed())
            await asyncio.sleep(0)  # it has come, and waits
        finally:
            load.gate.set()
        assert (await reload).status_code == 200
        await hangup
        assert await rescored_by(client, "given") == revision(served)


async def test_an_admin_can_take_a_server_out_of_rotation(home: Path, served: Path) -> None:
    async with administering(home, served) as (client, _):
        assert (await client.get("/health/ready")).status_code == 200
        assert (await client.post("/v1/admin/drain")).json() == {"status": "draining"}
        check_problem(await client.get("/health/ready"), 503, "draining")
        assert (await client.get("/health/live")).status_code == 200
        assert await rescored_by(client, "given") == revision(served)
