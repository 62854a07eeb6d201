"""POST /v1/rescore/lattice: what is refused, and where the fault is said to be."""

from __future__ import annotations

import gzip
import tracemalloc
from base64 import b64decode, encodebytes

import pytest

from quantized_lm.lattice.formats import LATTICE_FORMATS, ReadOptions
from tests.fakes import fake_loaded
from tests.service.serving import Json, request, running
from tests.service.test_errors import check_problem
from tests.service.test_lattice import PATH, SLF, lattice_of, post, sent_as

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"weights": {"char_bonus": 0.5}}, "/weights/char_bonus"),
        ({"weights": {"bias": 1.0}}, "/weights/bias"),
        ({"weights": {"length_norm": "words"}}, "/weights/length_norm"),
        ({"weights": {"extra": {"ctc": 1.0}}}, "/weights/extra"),
        ({"weights": {"mode": "linear", "graph_scale": 1.0}}, "/weights/mode"),
        ({"lms": [{"model": "tiny"}, {"model": "two"}]}, "/lms"),
        ({"options": {"n_best": 0}}, "/options/n_best"),
        ({"options": {"order": 1}}, "/options/order"),
        ({"options": {"on_deadline": "error"}}, "/options/on_deadline"),
        ({"lattices": []}, "/lattices"),
        ({"lattices": [{"text": "", "format": "htk"}] * 17}, "/lattices"),
        ({"lattices": [{}]}, "/lattices/0"),
        ({"lattices": [{"text": "x"}]}, "/lattices/0"),
        ({"lattices": [{"text": "x", "format": "k2-pt"}]}, "/lattices/0"),
        ({"lattices": [{"text": "x", "format": "mp3"}]}, "/lattices/0/format"),
    ],
)
async def test_what_does_not_fit_the_schema_is_422_with_a_pointer(
    fields: Json, pointer: str
) -> None:
    body = {"lattices": [{"text": SLF, "format": "htk"}], **fields}
    if "lms" not in body:
        body["model"] = "tiny"
    async with running(fake_loaded("tiny"), fake_loaded("two")) as (client, _):
        response = await client.post(PATH, json=body)
    assert check_problem(response, 422, "invalid_field")["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize(
    ("content", "media_type", "status", "code"),
    [
        (b"{", "application/json", 400, "malformed_json"),
        (b"\xff", "application/json", 400, "malformed_json"),
        (b'"\\ud800"', "application/json", 400, "malformed_json"),
        (b"[" * 100_000, "application/json", 400, "malformed_json"),
        (b"[]", "application/json", 422, "invalid_field"),
        (b"", "text/x-htk-slf", 422, "invalid_lattice"),
        (b"\x1f\x8bno", "text/x-htk-slf", 422, "invalid_lattice"),
        (b"x", "audio/wav", 415, "unsupported_media_type"),
        (b"x", "", 415, "unsupported_media_type"),
    ],
)
async def test_a_body_that_is_no_lattice_is_refused(
    content: bytes, media_type: str, status: int, code: str
) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    async with running() as (client, _):
        response = await client.post(PATH, content=content, headers=headers)
    problem = check_problem(response, status, code)
    assert status != 415 or "text/x-htk-slf" in problem["detail"]


async def test_a_lattice_that_fails_alone_is_counted() -> None:
    async with running() as (client, app):
        as_body = await client.post(PATH, content="x", headers={"Content-Type": "text/x-htk-slf"})
        in_json = await post(client, {"text": "x", "format": "htk"})
        value = app.state.core.metrics.registry.get_sample_value
        failed = value("rescore_utterances_total", {"model": "tiny", "outcome": "failed"})
    assert (as_body.status_code, in_json.status_code, failed) == (422, 422, 2.0)


async def test_an_encoding_but_gzip_is_415() -> None:
    headers = {"Content-Type": "text/x-htk-slf", "Content-Encoding": "br"}
    async with running() as (client, _):
        response = await client.post(PATH, content=SLF, headers=headers)
    check_problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("query", "pointer"),
    [("n_best=0", "/n_best"), ("nbest=1", "/nbest"), ("n_best=1&n_best=2", "/n_best")],
)
async def test_query_parameters_are_checked(query: str, pointer: str) -> None:
    headers = {"Content-Type": "text/x-htk-slf"}
    async with running() as (client, _):
        response = await client.post(f"{PATH}?{query}", content=SLF, headers=headers)
    assert check_problem(response, 422, "invalid_field")["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize("word", ["none", "null"])
async def test_none_is_a_word_in_lists_and_no_value_elsewhere(word: str) -> None:
    headers = {"Content-Type": "text/x-htk-slf"}
    async with running() as (client, _):
        query = {"context": word, "silence": word, "beam": word, "order": word}
        said = await client.post(PATH, params=query, content=SLF, headers=headers)
        other = {**query, "context": f"{word} {word} a cat"}
        differs = await client.post(PATH, params=other, content=SLF, headers=headers)
    assert (said.status_code, differs.status_code) == (200, 200)
    first, second = (one.json()["results"][0]["hypotheses"][0] for one in (said, differs))
    assert first["components"]["lm"] != second["components"]["lm"]


async def test_a_body_of_ids_is_told_where_its_symbols_go() -> None:
    content = LATTICE_FORMATS["kaldi-binary"].write([lattice_of()])
    headers = {"Content-Type": "application/x-kaldi-lattice"}
    async with running() as (client, _):
        response = await client.post(PATH, content=content, headers=headers)
        entry = sent_as("kaldi-binary", lattice_of())
        as_told = await post(client, entry)
    problem = check_problem(response, 422, "invalid_lattice")
    assert "send application/json, with the lattice as `text` or `base64`" in problem["detail"]
    assert entry.keys() == {"base64", "format", "symbols"}
    assert as_told.status_code == 200


async def test_base64_may_have_lines_and_what_is_none_is_said() -> None:
    sent = sent_as("k2-safetensors", lattice_of())
    broken = sent | {"base64": encodebytes(b64decode(sent["base64"])).decode()}
    assert broken["base64"].count("\n") > 3
    async with running() as (client, _):
        both = await post(client, broken, sent | {"base64": "no base64!"})
        alone = await post(client, sent | {"base64": "abc"})
    good, bad = both.json()["results"]
    assert good["hypotheses"]
    assert bad["error"]["detail"].startswith("is no base64 (")
    assert bad["error"]["errors"][0]["pointer"] == "/lattices/1/base64"
    problem = check_problem(alone, 422, "invalid_lattice")
    assert problem["errors"][0]["pointer"] == "/lattices/0/base64"


async def test_an_empty_lattice_of_an_archive_fails_in_its_place() -> None:
    (lattice,) = LATTICE_FORMATS["htk"].read(SLF.encode(), ReadOptions())
    words = [(lattice.symbols or {})[word] for word in lattice.words.values.tolist()]
    arcs = "".join(f"{at} {at + 1} {word} 1,1,\n" for at, word in enumerate(words))
    archive = f"u1 \n{arcs}{len(words)} 0,0,\n\n"
    headers = {"Content-Type": "text/x-kaldi-lattice"}
    async with running() as (client, _):
        content = f"u0 \n\n{archive}u2 \n\n"
        both = await client.post(PATH, content=content, headers=headers)
        alone = await client.post(PATH, content="u0 \n\n", headers=headers)
    assert both.status_code == 200, both.text
    first, good, last = both.json()["results"]
    assert [one["id"] for one in (first, good, last)] == ["u0", "u1", "u2"]
    assert "the lattice is empty" in first["error"]["detail"]
    assert good["hypotheses"][0]["text"] == " ".join(words)
    assert last["error"]["code"] == "invalid_lattice"
    check_problem(alone, 422, "invalid_lattice")


async def test_arcs_above_the_limit_are_413() -> None:
    async with running(max_lattice_arcs=3) as (client, _):
        response = await post(client, {"text": SLF, "format": "htk"})
        words = {"arcs": [[0, 1, 1, 0.0], [1, 2, -1, 0.0]], "aux_labels": [[1] * 4, [-1]]}
        long = await post(client, {"lattice": words, "symbols": ["<eps>", "the"]})
    problem = check_problem(response, 413, "too_many_arcs")
    assert "4 arcs" in problem["detail"]
    check_problem(long, 413, "too_many_arcs")


async def test_the_route_has_a_body_limit_of_its_own() -> None:
    headers = {"Content-Type": "text/x-htk-slf"}
    bomb = gzip.compress(b" " * 100_000)
    async with running(max_body_bytes=10, max_lattice_body_bytes=1000) as (client, _):
        fits = await client.post(PATH, content=SLF, headers=headers)
        large = await client.post(PATH, content=b" " * 1001, headers=headers)
        expanding = await client.post(PATH, content=bomb, headers=headers)
        other = await client.post("/v1/rescore", json=request())
    assert fits.status_code == 200
    check_problem(large, 413, "body_too_large")
    assert "more than 1000 bytes" in check_problem(expanding, 422, "invalid_lattice")["detail"]
    check_problem(other, 413, "body_too_large")


@pytest.mark.parametrize(
    "symbols", [[0] * 100_000, {"x": "a"}, {"1": 0}, 7], ids=["list", "key", "word", "number"]
)
async def test_symbols_are_read_to_their_first_fault(symbols: object) -> None:
    record = {"arcs": [[0, 1, 1, 0.0], [1, 2, -1, 0.0]]}
    async with running() as (client, _):
        tracemalloc.start()
        response = await post(client, {"lattice": record, "symbols": symbols})
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        own = await post(client, {"lattice": record | {"symbols": symbols}})
    problem = check_problem(response, 422, "invalid_lattice")
    assert problem["errors"][0]["pointer"] == "/lattices/0/symbols"
    assert peak_bytes < 8 << 20  # 100 MB if each were told
    own_problem = check_problem(own, 422, "invalid_lattice")
    assert own_problem["errors"][0]["pointer"] == "/lattices/0/lattice/symbols"


async def test_a_score_beyond_the_limit_points_at_its_arc() -> None:
    body = {"text": SLF.replace("a=-2.5", "a=-1e300"), "format": "htk"}
    async with running() as (client, _):
        check_problem(await post(client, body), 422, "invalid_lattice")
        impossible = {"text": SLF.replace("a=-1 ", "a=-inf "), "format": "htk"}
        problem = check_problem(await post(client, impossible), 422, "invalid_lattice")
    assert "no path" in problem["detail"]


async def test_an_infinite_score_that_a_scale_turns_around_fails_its_lattice_alone() -> None:
    entry = {"text": SLF, "format": "htk"}
    impossible = {"text": SLF.replace("a=-2.5", "a=-inf"), "format": "htk"}
    body = {"lattices": [entry, impossible], "weights": {"am_scale": -1.0}}
    async with running() as (client, _):
        alone = await post(client, impossible, weights={"am_scale": -1.0})
        both = await client.post(PATH, json=body)
    check_problem(alone, 422, "invalid_lattice")
    good, bad = both.json()["results"]
    assert good["hypotheses"]
    assert "-inf" in bad["error"]["detail"]


async def test_a_query_beside_json_is_refused_and_not_ignored() -> None:
    async with running() as (client, _):
        response = await client.post(f"{PATH}?n_best=2", json={"lattices": []})
    assert check_problem(response, 422, "invalid_field")["errors"][0]["pointer"] == "/n_best"
