"""What is sent: requests with n-best lists or lattices, written before anything is timed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantized_lm.bench.lists import made_up_texts
from quantized_lm.errors import DataError
from quantized_lm.lattice.formats import LATTICE_FORMATS
from quantized_lm.nbest import Hypothesis, read_utterances

NbestList = Sequence[Mapping[str, object]]  # hypotheses as the wire has them
LISTS_PER_SIZE = 50
LATTICE = "lattice"
_MOST_LATTICES = 20
_MADE_UP_AT_LEAST = 2  # a list of one is the first of one of two


@dataclass(frozen=True)
class Ask:
    """One request that can be sent any number of times.

    Attributes:
        kind: what it is counted as, such as "10-best" or "lattice".
        path: where it goes. media_type: of the body.
    """

    kind: str
    path: str
    media_type: str
    body: bytes

    def head(self, host: str, deadline_ms: float) -> bytes:
        """The request line and the headers."""
        return (
            f"POST {self.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {self.media_type}\r\n"
            f"Content-Length: {len(self.body)}\r\nX-Request-Timeout-Ms: {deadline_ms:g}\r\n\r\n"
        ).encode("ascii")


def kind_of_size(hypotheses: int) -> str:
    """What requests with lists of that many hypotheses are counted as."""
    return f"{hypotheses}-best"


def nbest_lists(files: Sequence[Path], hypotheses: int, seed: int) -> list[NbestList]:
    """Lists of these files, cut to that length, or as many made up where there are no files.

    Raises:
        DataError: a file cannot be read.
    """
    lists = [one for path in files for one in _read(path, hypotheses)]
    return lists or [_scored(texts) for texts in _made_up(hypotheses, seed)]


def list_asks(lists: Sequence[NbestList], hypotheses: int, seed: int) -> tuple[Ask, ...]:
    """Requests with one list each, cut to that length; made up where no list is that long."""
    chosen = [one[:hypotheses] for one in lists if len(one) >= hypotheses]
    chosen = chosen or nbest_lists((), hypotheses, seed)
    places = np.random.default_rng(seed).permutation(len(chosen))[:LISTS_PER_SIZE]
    return tuple(_list_ask(chosen[place], hypotheses) for place in places)


def lattice_asks(folder: Path) -> tuple[Ask, ...]:
    """Requests with one HTK lattice each, the smallest .slf and .slf.gz files of a folder.

    Raises:
        DataError: there is none.
    """
    files = sorted(folder.glob("*.slf*"), key=lambda path: path.stat().st_size)[:_MOST_LATTICES]
    if not files:
        raise DataError(f"{folder} holds no .slf or .slf.gz file; need at least one")
    media_type = LATTICE_FORMATS["htk"].media_type
    return tuple(
        Ask(LATTICE, "/v1/rescore/lattice?n_best=1", media_type, _plain(path)) for path in files
    )


def _plain(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def _read(path: Path, hypotheses: int) -> list[NbestList]:
    lists: list[NbestList] = []
    for utterance in read_utterances(path):
        distinct = {one.text: one for one in reversed(utterance.hypotheses)}
        kept = [one for one in utterance.hypotheses if distinct[one.text] is one][:hypotheses]
        lists.append([_sent(one) for one in kept])
    return lists


def _sent(one: Hypothesis) -> Mapping[str, object]:
    return {"text": one.text, "am_score": one.am_score or 0.0}


def _made_up(hypotheses: int, seed: int) -> list[tuple[str, ...]]:
    count = max(hypotheses, _MADE_UP_AT_LEAST)
    lists = made_up_texts(LISTS_PER_SIZE, hypotheses=count, seed=seed)
    return [texts[:hypotheses] for texts in lists]


def _scored(texts: Sequence[str]) -> NbestList:
    return [{"text": text, "am_score": -0.3 * place} for place, text in enumerate(texts)]


def _list_ask(hypotheses: NbestList, size: int) -> Ask:
    body = {"utterances": [{"hypotheses": hypotheses}]}
    content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    return Ask(kind_of_size(size), "/v1/rescore", "application/json", content)
