"""Damaged requests by the hundred thousand: `make fuzz`, or python -m tests.fuzzing.fuzz --help.

Each is answered, with no status of 500, by JSON that a strict parser reads, in bounded memory. What
breaks that is printed with its number, which makes it again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from fastapi import FastAPI

from service.api_keys import ApiKey, hash_of, write_keys
from service.errors import ERRORS, HTTP_ERRORS, PROBLEM_JSON
from service.middleware import CLIENT_GONE
from tests.fakes import fake_loaded
from tests.fuzzing.mutations import Sent, damaged
from tests.fuzzing.seeds import DRAIN, SPARE, seeds
from tests.service.serving import running

DEADLINE_PASSED = 504  # as `on_deadline: error` asks for
HANG_S = 30.0  # a request's own deadline is far below
GROWTH = 1.1  # of memory, from a tenth of the way to the end
GROWTH_BYTES = 32 << 20
SECRET = "sp_of-the-fuzzer"
CODES = {kind.code for kind in (*ERRORS.values(), *HTTP_ERRORS.values())}
SETTINGS = {"default_deadline_ms": 200.0, "max_deadline_ms": 1000.0}


@dataclass
class Found:
    """What came of it.

    Attributes:
        statuses: (path, status) -> how many.
        faults: what must not be, by number of the request.
        rss_bytes: memory at a tenth of the way, and at the end.
    """

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    rss_bytes: list[int] = field(default_factory=list)

    @property
    def is_memory_flat(self) -> bool:
        """Whether memory did not grow with the number of requests."""
        first, last = self.rss_bytes
        return last <= GROWTH * first + GROWTH_BYTES


async def fuzz(numbers: Sequence[int], seed: int) -> Found:
    """Send the requests of these numbers, one after the other."""
    found, valid = Found(), seeds()
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.json"
        every = ApiKey(
            name="fuzz", scopes=("score", "admin"), sha256=hash_of(SECRET), created="2026-11-21"
        )
        write_keys(keys, [every])
        models = (fake_loaded("tiny"), fake_loaded("other"), fake_loaded(SPARE))
        async with running(*models, api_keys_file=keys, **SETTINGS) as (_, app):
            require_all_posts(app, {one.path for one in valid})
            for place, number in enumerate(numbers):
                sent = request_of(number, seed, valid)
                await _try(app, sent, number, found)
                if place in (len(numbers) // 10, len(numbers) - 1):
                    found.rss_bytes.append(_rss_bytes())
    return found


def request_of(number: int, seed: int, valid: Sequence[Sent]) -> Sent:
    """The same number and seed make the same request."""
    chance = random.Random(f"{seed}/{number}")
    return damaged(valid[number % len(valid)], chance)


def require_all_posts(app: FastAPI, paths: set[str]) -> None:
    """Every route that takes a POST is among these paths, but for the one that drains."""
    document = app.openapi()["paths"]
    known = {path for path, operations in document.items() if "post" in operations}
    sent = {path.replace(f"/{SPARE}/", "/{name}/") for path in paths}
    assert known == sent | {DRAIN}, known ^ sent


def fault_of(status: int, headers: dict[str, str], body: bytes) -> str:
    """What is wrong with an answer; "" if nothing is."""
    shown = f"status {status}: {body[:300]!r}"
    if status == CLIENT_GONE or (status >= 500 and status != DEADLINE_PASSED):
        return shown
    try:
        parsed = json.loads(body.decode(), parse_constant=_refuse)
    except ValueError as error:
        return f"{shown} is no strict JSON: {error}"
    if status == 200:
        return ""
    is_problem = headers.get("content-type") == PROBLEM_JSON
    if not is_problem or parsed.get("code") not in CODES or parsed.get("status") != status:
        return f"{shown} is no problem of the table"
    return ""


async def _try(app: FastAPI, sent: Sent, number: int, found: Found) -> None:
    started_s = time.perf_counter()
    try:
        status, headers, body = await asyncio.wait_for(_answer(app, sent), HANG_S)
        fault = fault_of(status, headers, body)
    except asyncio.TimeoutError:
        status, fault = 0, f"no answer in {HANG_S:g} s"
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        status, fault = 0, f"{type(error).__name__} left the app: {error}"
    found.slowest_s = max(found.slowest_s, time.perf_counter() - started_s)
    found.statuses[sent.path, status] += 1
    if fault:
        found.faults.append(f"{number}: {sent.path}?{sent.query} {sent.headers}: {fault}")


async def _answer(app: FastAPI, sent: Sent) -> tuple[int, dict[str, str], bytes]:
    """What the app sends back; spoken to as uvicorn does, without a client in between."""
    headers = {"host": "x", "authorization": f"Bearer {SECRET}", **sent.headers}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": sent.path,
        "raw_path": sent.path.encode(),
        "root_path": "",
        "query_string": sent.query.encode(),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "state": {},
    }
    is_read = False
    answered: list[Any] = []

    async def receive() -> dict[str, Any]:
        nonlocal is_read
        if is_read:
            await asyncio.Event().wait()  # the client stays
        is_read = True
        return {"type": "http.request", "body": sent.content, "more_body": False}

    async def send(message: Any) -> None:
        answered.append(message)

    await app(scope, receive, send)
    start, *rest = answered
    names = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return start["status"], names, b"".join(one.get("body", b"") for one in rest)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _say(line: str) -> None:
    sys.stdout.write(line.encode("ascii", "backslashreplace").decode() + "\n")


def _rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def main(arguments: Sequence[str]) -> int:
    """The command line; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bodies", type=int, default=100_000, help="how many requests")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same requests")
    parser.add_argument("--only", type=int, help="the request of this number alone, and show it")
    asked = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    numbers = range(asked.bodies) if asked.only is None else [asked.only]
    if asked.only is not None:
        _say(str(request_of(asked.only, asked.seed, seeds())))
    started_s = time.perf_counter()
    found = asyncio.run(fuzz(numbers, asked.seed))
    for fault in found.faults[:50]:
        _say(fault)
    is_flat = asked.only is not None or found.is_memory_flat
    summary = {
        "bodies": len(numbers),
        "faults": len(found.faults),
        "seconds": round(time.perf_counter() - started_s, 1),
        "slowest_ms": round(1000 * found.slowest_s, 1),
        "rss_mib": [size >> 20 for size in found.rss_bytes],
        "is_memory_flat": is_flat,
        "statuses": {f"{path} {status}": n for (path, status), n in sorted(found.statuses.items())},
    }
    _say(json.dumps(summary))
    return int(bool(found.faults) or not is_flat)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
