"""A server that does as it is told, in the same event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from loadtest.connection import Connections

Answer = Callable[[int, bytes], Awaitable[bytes]]


def reply(status: int = 200, body: bytes = b'{"degraded":[]}', timing: str = "") -> bytes:
    """The bytes of an answer."""
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nServer-Timing: {timing}\r\n\r\n"
    return head.encode() + body


@dataclass
class Scripted:
    """A server.

    Attributes:
        answer: (number of the request, body) -> bytes to send; b"" closes the connection.
        bodies: what came whole. num_connections: that were made.
    """

    answer: Answer
    bodies: list[bytes] = field(default_factory=list)
    num_connections: int = 0

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.num_connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                self.bodies.append(body)
                answer = await self.answer(len(self.bodies) - 1, body)
                if not answer:
                    break
                writer.write(answer)
        writer.close()


@contextlib.asynccontextmanager
async def scripted(answer: Answer) -> AsyncIterator[tuple[Scripted, Connections]]:
    """A server that listens, and connections to it."""
    server = Scripted(answer)
    listening = await asyncio.start_server(server.serve_one, "127.0.0.1", 0)
    connections = Connections("127.0.0.1", listening.sockets[0].getsockname()[1])
    try:
        yield server, connections
    finally:
        connections.close()
        listening.close()
        await asyncio.sleep(0)
