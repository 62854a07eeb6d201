"""GET /: a page to try a model and to see how this server fares. Needs nothing from elsewhere."""

from __future__ import annotations

import functools
import hashlib
from importlib.resources import files
from typing import Literal

from fastapi import APIRouter, Request, Response

Asset = Literal[
    "answer.js",
    "asking.js",
    "drawing.js",
    "example.json",
    "icon.svg",
    "live.js",
    "main.js",
    "page.css",
    "scoring.js",
]
MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
}
HEADERS = {
    # Asked for again each time, answered without a body while it is the same: an upgraded server
    # must never meet the script of the one before.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
router = APIRouter(include_in_schema=False)


@router.get("/")
async def page(request: Request) -> Response:
    """The page itself."""
    return _file("index.html", request)


@router.get("/page/{name}")
async def asset(name: Asset, request: Request) -> Response:
    """One of the files it is made of."""
    return _file(name, request)


def _file(name: str, request: Request) -> Response:
    content, etag = _read(name)
    headers = {**HEADERS, "ETag": etag}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=MEDIA_TYPES[name.rpartition(".")[2]])


@functools.cache
def _read(name: str) -> tuple[bytes, str]:
    content = (files("service") / "page" / name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:16]}"'
