"""Which folder a name means, and which revision."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import TinyRun
from tests.service.artifacts import act, administering, copy_of, rescored_by, revision
from tests.service.serving import request
from tests.service.test_errors import check_problem

pytestmark = pytest.mark.anyio


async def test_a_folder_whose_manifest_has_another_name_is_refused(
    tiny_run: TinyRun, home: Path, served: Path
) -> None:
    copy_of(tiny_run.artifact, home / "second").rename(home / "third")
    async with administering(home, served) as (client, _):
        problem = check_problem(await act(client, "third", "load"), 422, "invalid_model")
    assert "manifest.json names the model 'second'; need 'third'" in problem["detail"]


async def test_no_name_leads_out_of_the_folder(tiny_run: TinyRun, home: Path, served: Path) -> None:
    outside = copy_of(tiny_run.artifact, home.parent / "linked")
    (home / "linked").symlink_to(outside)
    inner = copy_of(tiny_run.artifact, home / "inner")
    (inner / "weights.safetensors").unlink()
    (inner / "weights.safetensors").symlink_to(outside / "weights.safetensors")
    (home / "file").write_text("none", encoding="utf-8")
    (home / "empty").mkdir()
    names = ("absent", "..", "%2e%2e", "..%2flinked", "%2fetc", ".", "a b", "%00", "caf%c3%a9")
    async with administering(home, served) as (client, _):
        for name in (*names, "linked", "inner", "file", "empty", "..%2flinked%2f"):
            response = await act(client, name, "load")
            assert response.status_code == 404, name
        listed = (await client.get("/v1/admin/models")).json()["models"]
        assert [one["name"] for one in listed] == ["given"]


async def test_a_link_that_stays_inside_may_be_followed(
    tiny_run: TinyRun, home: Path, served: Path
) -> None:
    copy_of(tiny_run.artifact, home / ".versions" / "second")
    (home / "second").symlink_to(home / ".versions" / "second")
    async with administering(home, served) as (client, _):
        assert (await act(client, "second", "load")).status_code == 200


async def test_without_a_model_folder_only_given_models_can_be_reloaded(
    tmp_path: Path, served: Path
) -> None:
    async with administering(tmp_path / "absent", served) as (client, _):
        problem = check_problem(await act(client, "second", "load"), 404, "model_not_found")
        assert "given" in problem["detail"]
        assert (await act(client, "given", "reload")).status_code == 200


async def test_a_pin_is_met_by_that_revision_only(home: Path, served: Path) -> None:
    async with administering(home, served) as (client, _):
        loaded = revision(served)
        digits = loaded.removeprefix("sha256:")
        for pin in (loaded, digits, digits[:12], f"sha256:{digits[:12]}"):
            assert await rescored_by(client, f"given@{pin}") == loaded
            assert (await client.get(f"/v1/models/given@{pin}")).json()["id"] == "given"
            named = {"lms": [{"model": f"given@{pin}", "lm_scale": 0.25}]}
            formula = (await client.post("/v1/rescore", json=request(**named))).json()["formula"]
            assert "0.25*lm[given]" in formula
        wrong = "0" * 12 if digits[:12] != "0" * 12 else "1" * 12
        for pin in (wrong, f"sha256:{wrong}"):
            refused = await client.post("/v1/rescore", json=request(model=f"given@{pin}"))
            assert loaded in check_problem(refused, 404, "model_not_found")["detail"]
        for pin in (digits[:11], digits + "0", "", "sha256:", digits[:12].upper() + "g", "latest"):
            refused = await client.post("/v1/rescore", json=request(model=f"given@{pin}"))
            assert "12 to 64" in check_problem(refused, 404, "model_not_found")["detail"]
        unknown = await client.post("/v1/rescore", json=request(model=f"other@{digits}"))
        assert "need one of given" in check_problem(unknown, 404, "model_not_found")["detail"]
        twice = {"lms": [{"model": "given"}, {"model": f"given@{digits}"}]}
        refused = await client.post("/v1/rescore", json=request(**twice))
        assert check_problem(refused, 422, "invalid_field")["errors"][0]["pointer"] == "/lms"
