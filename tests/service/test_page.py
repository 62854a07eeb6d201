"""The page at /: what is served, and with which headers. What it does is test_page_browser.py's."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import get_args

import pytest

from service.api_keys import required_scope
from service.routes.page import MEDIA_TYPES, Asset
from tests.service.serving import running

FOLDER = files("service") / "page"
ROOT = Path(__file__).parents[2]
NOT_SERVED = {"index.html", "screenshot.png"}


@pytest.mark.anyio
async def test_the_page_is_html_that_may_load_nothing_from_elsewhere() -> None:
    async with running() as (client, _):
        response = await client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert "unsafe" not in policy


@pytest.mark.anyio
async def test_every_file_is_served_with_its_type_and_the_same_headers() -> None:
    async with running() as (client, _):
        policy = (await client.get("/")).headers["content-security-policy"]
        for name in get_args(Asset):
            response = await client.get(f"/page/{name}")
            assert response.content == (FOLDER / name).read_bytes()
            assert response.headers["content-type"] == MEDIA_TYPES[name.rpartition(".")[2]]
            assert response.headers["content-security-policy"] == policy
            assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["index.html", "..%2Fapp.py", "nothing.js"])
async def test_no_other_file_is_served(name: str) -> None:
    async with running() as (client, _):
        assert (await client.get(f"/page/{name}")).status_code in (404, 422)


def test_the_page_needs_no_key_and_what_it_asks_does() -> None:
    assert required_scope("/") is None
    assert {required_scope(f"/page/{name}") for name in get_args(Asset)} == {None}
    assert required_scope("/v1/rescore") == "score"


@pytest.mark.anyio
async def test_an_unchanged_file_is_not_sent_twice() -> None:
    async with running() as (client, _):
        first = await client.get("/page/main.js")
        assert first.headers["cache-control"] == "no-cache"
        headers = {"If-None-Match": first.headers["etag"]}
        again = await client.get("/page/main.js", headers=headers)
        other = await client.get("/page/page.css", headers=headers)
    assert (again.status_code, again.content) == (304, b"")
    assert other.status_code == 200


def test_the_folder_has_what_is_served_and_nothing_else() -> None:
    names = {path.name for path in FOLDER.iterdir()} - NOT_SERVED
    assert names == set(get_args(Asset))


def test_what_the_files_load_is_served() -> None:
    index = (FOLDER / "index.html").read_text("utf-8")
    loaded = set(re.findall(r'(?:src|href)="page/([^"]+)"', index))
    for name in get_args(Asset):
        if name.endswith(".js"):
            text = (FOLDER / name).read_text("utf-8")
            loaded |= set(re.findall(r'from "\./([^"]+)"', text))
            loaded |= set(re.findall(r'fetch\("page/([^"]+)"', text))
    assert loaded == set(get_args(Asset))


def test_nothing_is_asked_of_another_host_and_every_path_is_relative() -> None:
    """So that it works offline, and behind a proxy that adds a prefix."""
    for name in ("index.html", *get_args(Asset)):
        if name.endswith((".html", ".js", ".css")):
            text = (FOLDER / name).read_text("utf-8")
            assert set(re.findall(r"https?://[^\"'\s]+", text)) <= {"http://www.w3.org/2000/svg"}
            assert not re.search(r'(?:src|href|fetch)(?:=|\()"/', text)


def test_the_example_is_the_sample_request() -> None:
    sample = ROOT / "deploy" / "sample_request.json"
    assert json.loads((FOLDER / "example.json").read_text("utf-8")) == json.loads(
        sample.read_text("utf-8")
    )


def test_the_screenshot_is_small() -> None:
    picture = (FOLDER / "screenshot.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 150_000
