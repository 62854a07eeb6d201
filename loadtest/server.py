"""The server under test: a process of its own on loopback, its memory and its metrics."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from loadtest.connection import authority
from quantized_lm.errors import SecondpassError

START_S = 120.0
STOP_S = 40.0
_LISTENING = re.compile(r"running on http://([0-9.]+):(\d+)")
_SCRAPE_S = 5.0
_LOOK_S = 0.05
_BUSY_COLUMNS = (0, 1, 2, 5, 6, 7)  # of /proc/stat: user, nice, system, irq, softirq, steal


class ServerError(SecondpassError):
    """The server does not start, is not where it is said to be, or may not be tested."""


@dataclass(frozen=True)
class Address:
    """Where the server listens.

    Attributes:
        pid: of its process; None where it is not known, and its memory neither.
    """

    host: str
    port: int
    pid: int | None = None

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://{authority(self.host, self.port)}"


def loopback(target: str) -> Address:
    """The address that a URL names.

    Raises:
        ServerError: it is not http://ADDRESS:PORT, or another machine would get the load.
    """
    parts = urllib.parse.urlsplit(target)
    try:
        port, host = parts.port, parts.hostname or ""
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        port, is_loopback = None, False
    if parts.scheme != "http" or port is None or not is_loopback:
        raise ServerError(
            f"the target is {target}; need http://ADDRESS:PORT with a loopback address, such as "
            "http://127.0.0.1:8080"
        )
    return Address("127.0.0.1" if host == "localhost" else host, port)


@contextlib.contextmanager
def serving(model: Path | None, settings: Mapping[str, str], log: Path) -> Iterator[Address]:
    """A server process on a free loopback port, for as long as this lasts.

    Args:
        model: its folder; None for the bundled one.
        settings: name -> value of SECONDPASS_ variables; those of this process do not count.
        log: where its output goes.

    Raises:
        ServerError: it did not start, or did not end well.
    """
    arguments = [] if model is None else ["--model", str(model)]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "service", "serve", "--port", "0", *arguments],
            stdout=output,
            stderr=output,
            env=_environment(settings),
        )
    try:
        yield _address(process, log)
    finally:
        code = _stop(process)
    if code != 0:
        raise ServerError(f"the server ended with {code}; need 0; its log is {log}")


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SECONDPASS_")}
    return inherited | {f"SECONDPASS_{name.upper()}": value for name, value in settings.items()}


def _address(process: subprocess.Popen[bytes], log: Path) -> Address:
    end_s = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end_s:
        if found := _LISTENING.search(log.read_text(encoding="utf-8", errors="replace")):
            return Address(found[1], int(found[2]), process.pid)
        time.sleep(_LOOK_S)
    raise ServerError("the server did not start; the end of its log is above")


def _stop(process: subprocess.Popen[bytes]) -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def scrape(address: Address) -> dict[str, float]:
    """Samples of /metrics by name and labels, over all models: `name{le="1.0",reason="x"}`.

    Raises:
        ServerError: it does not answer.
    """
    try:
        with httpx.Client(trust_env=False, timeout=_SCRAPE_S) as client:  # no proxy
            text = client.get(f"{address.url}/metrics").raise_for_status().text
    except httpx.HTTPError as error:
        raise ServerError(f"{address.url}/metrics does not answer ({error})") from None
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(
                f'{key}="{value}"' for key, value in sorted(sample.labels.items()) if key != "model"
            )
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            sums[name] = sums.get(name, 0.0) + sample.value
    return sums


def busy_s() -> float:
    """Seconds for which the cores that this process may use have worked, or were stolen.

    0 where the system does not tell.
    """
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = 0
    for name, *counts in (line.split() for line in lines):
        if name in cores:
            ticks += sum(int(counts[place]) for place in _BUSY_COLUMNS)
    return ticks / os.sysconf("SC_CLK_TCK")


class MemoryWatch:
    """Resident memory of the server, looked at every so often from a thread.

    Args:
        pid: of the server; None: nothing is seen.
        every_s: between two looks.
    """

    def __init__(self, pid: int | None, every_s: float = 0.25) -> None:
        self._file = None if pid is None else Path(f"/proc/{pid}/statm")
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._seen: list[tuple[float, int]] = []  # on the clock of time.perf_counter

    @property
    def peak_bytes(self) -> int:
        """Of all looks."""
        return max((size for _, size in self._seen), default=0)

    def halves_bytes(self, start_s: float, end_s: float) -> tuple[int, int]:
        """Peaks of the first and of the second half of that time."""
        middle_s = (start_s + end_s) / 2
        first = (size for at_s, size in self._seen if start_s <= at_s < middle_s)
        second = (size for at_s, size in self._seen if middle_s <= at_s <= end_s)
        return max(first, default=0), max(second, default=0)

    def now_bytes(self) -> int:
        """At this moment; 0 where it cannot be seen."""
        if self._file is None:
            return 0
        try:
            pages = int(self._file.read_text(encoding="ascii").split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGESIZE")

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            self._seen.append((time.perf_counter(), self.now_bytes()))
