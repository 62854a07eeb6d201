"""A stand-in for a decoder: sends its n-best lists every second and prints what comes back.

Needs Python alone: `python decoder.py sample_request.json [URL [PERIOD_S]]`. A service that is
away, refuses or answers nonsense costs one line, and the first pass stands; the next second tries
again.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

TIMEOUT_S = 5.0


def best_texts(url: str, request: bytes) -> list[str]:
    """One line per utterance: its id and best text, and where the decoder had ranked it.

    Raises:
        OSError: nobody answered, or with an error status.
        http.client.HTTPException: what answered does not speak HTTP.
        ValueError, LookupError, TypeError: it does, and is not the service.
    """
    post = urllib.request.Request(  # noqa: S310 - the URL is ours
        f"{url}/v1/rescore", request, {"Content-Type": "application/json"}
    )
    # The service stands beside the decoder: what proxy the machine uses is not for it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(post, timeout=TIMEOUT_S) as reply:
        results = json.load(reply)["results"]
    return [_line(*pair) for pair in zip(results, first_pass(request), strict=True)]


def first_pass(request: bytes) -> list[str]:
    """The same lines without the service: its absence never makes a decoder worse."""
    return [
        f"{utterance['id']}: {utterance['hypotheses'][0]['text']} (first pass)"
        for utterance in json.loads(request)["utterances"]
    ]


def decode(url: str, request: bytes) -> list[str]:
    """The lines of one round, with the service or without."""
    try:
        return best_texts(url, request)
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        return [f"no second pass: {error!r}", *first_pass(request)]


def _line(result: dict[str, Any], first: str) -> str:
    if "error" in result:
        return f"{first}: {result['error']['detail']}"
    best = result["hypotheses"][0]
    return f"{result['id']}: {best['text']} (was {best['input_rank']})"


def main(path: str, url: str = "http://127.0.0.1:8080", period_s: str = "1") -> None:
    """Decode for ever."""
    request = Path(path).read_bytes()
    while True:
        sys.stdout.write("\n".join(decode(url, request)) + "\n")
        sys.stdout.flush()
        time.sleep(float(period_s))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(*sys.argv[1:])
