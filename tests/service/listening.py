"""A server on a real socket, in the test's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from service.app import create_app
from service.connections import BoundedConfig, ConnectionLimits
from service.settings import Settings
from tests.fakes import FakeLoader, TableModel, fake_loaded


@dataclass
class Listening:
    """A server on a port of its own."""

    port: int
    app: Any
    limits: ConnectionLimits
    timeouts: list[None]
    refused: list[str]
    connections: Collection[object]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection."""
        return await asyncio.open_connection("127.0.0.1", self.port)


@contextlib.asynccontextmanager
async def listening(
    model: TableModel | None = None,
    *,
    read_timeout_s: float = 30.0,
    max_connections: int = 2000,
    kernel_bytes: int | None = None,
) -> AsyncIterator[Listening]:
    """A server of one model, in this event loop.

    Args:
        kernel_bytes: what the kernel keeps of answers that are not read; as it likes if None.
    """
    model = model or TableModel()
    app = create_app(Settings(models=(Path("tiny"),)), load=FakeLoader(fake_loaded(model=model)))
    timeouts: list[None] = []
    refused: list[str] = []
    limits = ConnectionLimits(
        read_timeout_s, max_connections, lambda: timeouts.append(None), refused.append
    )
    config = BoundedConfig(app, limits, lifespan="off", log_config=None, backlog=4096)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    async with app.router.lifespan_context(app):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            if kernel_bytes is not None:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, kernel_bytes)
            await server.startup([listener])
            port, connections = listener.getsockname()[1], server.server_state.connections
            try:
                yield Listening(port, app, limits, timeouts, refused, connections)
            finally:
                model.gate.set()
                for connection in list(connections):
                    connection.transport.abort()
                await server.shutdown()


async def whole_answer(reader: asyncio.StreamReader) -> tuple[int, dict[bytes, bytes], Any]:
    """Status, headers and JSON of one answer."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30.0)
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    body = await reader.readexactly(int(fields[b"content-length"]))
    return int(head.split()[1]), fields, json.loads(body)


async def answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
    """Status and JSON of one answer."""
    status, _, body = await whole_answer(reader)
    return status, body
