"""What tests of the page do in a browser: fill in, ask, and read what is shown."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.service.serving import Json

# A sandbox needs rights that a container lacks; the rest keeps the browser from calling home.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TEXTS = ("the cat sat on a mat", "a cat sat on a mat", "the cat saw a mat", "an old dog ran")
LIST = "\n".join(f"{text}\t{-1.5 - rank}\t{-0.25 * rank}" for rank, text in enumerate(TEXTS))
# Of some elements, how their color stands out from what is behind it: [[selector, ratio]].
CONTRASTS = """(() => {
  const numbers = (color) => color.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (color) => numbers(color).map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const paper = (one) => {
    const color = getComputedStyle(one).backgroundColor;
    return color === 'rgba(0, 0, 0, 0)' ? paper(one.parentElement) : color;
  };
  return ['h1', '.note', '#run', '.score', '.up', '.down', '.badge', 'nav a', '#gutter']
    .map((what) => {
      const one = document.querySelector(what);
      const pair = [light(getComputedStyle(one).color), light(paper(one))];
      return [what, (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05)];
    });
})()"""
Page = Any  # playwright is optional, so its types are


def rescored(server: str, body: Json) -> Json:
    """What the server answers to a body."""
    response = httpx.post(f"{server}/v1/rescore", json=body, trust_env=False, timeout=30)
    assert response.status_code == 200
    reply: Json = response.json()
    return reply


def shown(page: Page) -> list[tuple[int, float]]:
    """Input rank and score of every row."""
    rows = page.eval_on_selector_all(
        "#ranking li",
        "rows => rows.map(row => [row.querySelector('.move').textContent,"
        " row.querySelector('.score').textContent])",
    )
    return [(int(move.split()[1]), float(score.replace("\u2212", "-"))) for move, score in rows]


def expected(reply: Json) -> list[Any]:
    """What the page should show of a reply."""
    return [
        (one["input_rank"], pytest.approx(one["score"], abs=0.0051))
        for one in reply["results"][0]["hypotheses"]
    ]


def ask(page: Page, text: str) -> None:
    """Fill in the editor, rescore, and wait for the answer."""
    page.fill("#input", text)
    with page.expect_response("**/v1/rescore"):
        page.click("#run")
    page.wait_for_selector("#run:not([aria-busy])")


def list_body(**weights: float) -> Json:
    """The body of `LIST` with some weights."""
    hypotheses = [
        {"text": text, "am_score": -1.5 - rank, "graph_score": -0.25 * rank}
        for rank, text in enumerate(TEXTS)
    ]
    return {"utterances": [{"hypotheses": hypotheses}], "weights": weights}
