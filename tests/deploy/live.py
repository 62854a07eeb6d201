"""Every panel and rule against a real Prometheus that scrapes the real service, in a minute.

`python -m tests.deploy.live` serves the bundled model, lets deploy/decoder.py decode, adds
lattices, texts and faulty requests, and then asks Prometheus what the dashboard would ask.
An expression without an answer is a fault; so is an alert that is not silent. Prints one JSON
object last.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.deploy.files import DEPLOY, RULES, load, panel_expressions, recorded

START_S = 60.0
LOAD_S = 45.0  # so that a rate over a minute has what it needs
# Pending, not firing: searches are ended by a budget here so that the panel has something to show.
SILENT = 'ALERTS{alertname!="SecondpassDegraded"}'


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@contextlib.contextmanager
def process(*args: str | Path) -> Iterator[None]:
    """A program, until the end of the block."""
    with tempfile.TemporaryFile() as log:
        running = subprocess.Popen(list(map(str, args)), stdout=log, stderr=log)
        try:
            yield
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read()[-4000:].decode(errors="replace"))
            raise
        finally:
            running.terminate()
            running.wait(timeout=60.0)


def wait_for(url: str) -> None:
    """Until it answers."""
    give_up_s = time.monotonic() + START_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url).is_success:
                return
        if time.monotonic() > give_up_s:
            raise TimeoutError(f"{url} does not answer after {START_S:.0f} s")
        time.sleep(0.2)


def configuration(folder: Path, target: str) -> Path:
    """deploy/prometheus/prometheus.yml with another target, and impatient."""
    config = load(DEPLOY / "prometheus/prometheus.yml")
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES)]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def send_what_the_decoder_does_not(service: str) -> None:
    """A lattice on a budget, an unknown word, a list that fails beside another, a misspelling."""
    lattice = (DEPLOY / "sample_lattice.slf").read_bytes()
    known = {"text": "the weather is nice", "am_score": -1.0}
    long = {"text": "word " * 2000, "am_score": -1.0}
    posts: tuple[tuple[str, int, dict[str, Any]], ...] = (
        (
            "/v1/rescore/lattice?max_lm_steps=10",
            200,
            {"content": lattice, "headers": {"Content-Type": "text/x-htk-slf"}},
        ),
        ("/v1/score", 200, {"json": {"texts": ["the weather is \u4e2d"]}}),
        (
            "/v1/rescore",
            200,
            {"json": {"utterances": [{"hypotheses": [known]}, {"hypotheses": [long]}]}},
        ),
        ("/v1/rescore", 422, {"json": {"utterances": [{"hypotheses": [known]}], "wieghts": {}}}),
    )
    for path, status, body in posts:
        reply = httpx.post(service + path, timeout=30.0, **body)
        if reply.status_code != status:
            raise ValueError(f"{path} answered {reply.status_code}, need {status}: {reply.text}")


def ask(prometheus: str, expression: str) -> list[Any]:
    """The series that an expression has now."""
    reply = httpx.get(f"{prometheus}/api/v1/query", params={"query": expression}).json()
    if reply["status"] != "success":
        raise ValueError(f"{expression}: {reply['error']}")
    series: list[Any] = reply["data"]["result"]
    return series


def main() -> int:
    """Start everything, wait, ask."""
    if shutil.which("prometheus") is None:
        sys.stdout.write("skipped: prometheus is not installed; deploy/check.sh installs it\n")
        return 0
    target, watcher = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    service, prometheus = f"http://{target}", f"http://{watcher}"
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as running:
        config = configuration(Path(name), target)
        serve = ("-m", "service", "serve", "--port", target.rpartition(":")[2])
        running.enter_context(process(sys.executable, *serve))
        wait_for(f"{service}/health/ready")
        store = ("--storage.tsdb.path", f"{name}/data", "--web.listen-address", watcher)
        running.enter_context(process("prometheus", "--config.file", config, *store))
        wait_for(f"{prometheus}/-/ready")
        sample = DEPLOY / "sample_request.json"
        decoder = (DEPLOY / "decoder.py", sample, service, "0.2")
        running.enter_context(process(sys.executable, *decoder))
        end_s = time.monotonic() + LOAD_S
        while time.monotonic() < end_s:
            send_what_the_decoder_does_not(service)
            time.sleep(1.0)
        asked = list(itertools.chain(panel_expressions(), recorded()))
        empty = [expression for expression in asked if not ask(prometheus, expression)]
        alerts = [series["metric"] for series in ask(prometheus, SILENT)]
    sys.stdout.write(json.dumps({"asked": len(asked), "empty": empty, "alerts": alerts}) + "\n")
    return 1 if empty or alerts else 0


if __name__ == "__main__":
    sys.exit(main())
