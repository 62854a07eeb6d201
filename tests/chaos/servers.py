"""Servers in processes of their own, on loopback, to be ill-treated."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.service.serving import request

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0  # nothing here takes so long, however busy the machine
BODY = json.dumps(request()).encode()
HEAD = b"POST /v1/rescore HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
FAKE = ("-m", "tests.chaos.fake_server")
LISTENING = re.compile(r"running on (http://[0-9.:]+)")


@dataclass
class Process:
    """A server process.

    Attributes:
        url: where it listens.
        lines: what it has logged.
    """

    process: subprocess.Popen[str]
    url: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        url = httpx.URL(self.url)
        return url.host, int(url.port or 80)

    @property
    def log(self) -> str:
        """All of it so far."""
        return "".join(self.lines)

    def client(self) -> httpx.Client:
        """A client of it."""
        return httpx.Client(base_url=self.url, trust_env=False, timeout=PATIENCE_S)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name with these labels."""
        with self.client() as client:
            text = client.get("/metrics").text
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if re.match(rf"{name}[{{ ]", line) and all(one in line for one in wanted)
        )


@contextlib.contextmanager
def started(*arguments: str, **settings: object) -> Iterator[Process]:
    """A server that listens; killed at the end if it still runs.

    Args:
        arguments: of Python.
        settings: values of SECONDPASS_ variables.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(**{"port": 0, **settings}),
    )
    server = Process(process)
    is_listening = threading.Event()
    reader = threading.Thread(target=_read, args=(server, is_listening))
    reader.start()
    try:
        assert is_listening.wait(PATIENCE_S), server.log
        assert server.url, server.log
        yield server
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


def fake(pass_s: float, **settings: object) -> contextlib.AbstractContextManager[Process]:
    """A server of a table whose forward pass takes that long."""
    return started(*FAKE, str(pass_s), **settings)


def environment(**settings: object) -> dict[str, str]:
    """The environment of a server with these settings and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SECONDPASS_")}
    return kept | {f"SECONDPASS_{name.upper()}": str(value) for name, value in settings.items()}


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_until(is_so: Callable[[], bool]) -> None:
    """Look again and again; fails when patience is over."""
    end_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end_s, f"not so after {PATIENCE_S:g} s"
        time.sleep(0.02)


def _read(server: Process, is_listening: threading.Event) -> None:
    assert server.process.stderr is not None
    for line in server.process.stderr:
        server.lines.append(line)
        if not server.url and (found := LISTENING.search(line)):
            server.url = found[1]
            is_listening.set()
    is_listening.set()  # or whoever waits learns only late that it ended
