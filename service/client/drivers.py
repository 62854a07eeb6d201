"""The two clients: the steps of a call, done blocking or on an event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import httpx

from service.client.asks import Ask, ask_lattice, ask_rescore, ask_score
from service.client.exchange import (
    Answer,
    Exchange,
    Failure,
    Pause,
    Probe,
    Send,
    Step,
    Steps,
    failure_of,
    require_size,
    require_time,
)
from service.client.homes import Homes, this_loop, this_process
from service.client.pool import Pool, in_turn, maker
from service.client.probe_thread import begin_probe
from service.client.replies import Json, LatticeReply, Reply, RescoreReply, ScoreReply
from service.client.settings import Ambient, ClientSettings
from service.client.stats import Stats
from service.client.tasks import Tasks
from service.client.time_left import TimeLeft
from service.client.workers import Workers

logger = logging.getLogger(__name__)
T = TypeVar("T")
ReplyT = TypeVar("ReplyT", bound=Reply)
_SETTINGS = ClientSettings()
_AMBIENT = Ambient()


class Client:
    """A blocking client, which several threads may use, and forked children as well.

    In a child it starts afresh, with connections of its own, nothing counted and the service taken
    to be there.

    At the deadline a call is over whatever it waits for, a name server included; only to write the
    JSON of a request and to read that of an answer takes what it takes. A thread that is left with
    a name, with addresses of which none answers or with headers that trickle in has one of
    `max_connections` until it ends, and keeps neither `close` nor the interpreter waiting.

    Args:
        url: of the service.
        settings: of all calls.
        transport: makes what stands for the network, or knows certificates and proxies; those in
            the environment are not used. Called again in a forked child. One of httpx needs limits
            of at least `max_connections`, so that calls never wait for a connection in it.
        ambient: clock and randomness.
        sleep: lets seconds pass.

    Attributes:
        settings: as given.

    Raises:
        InputError: the URL is not one of HTTP, or `transport` makes nothing.
    """

    def __init__(
        self,
        url: str,
        settings: ClientSettings = _SETTINGS,
        *,
        transport: Callable[[], httpx.BaseTransport] | None = None,
        ambient: Ambient = _AMBIENT,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings = settings
        self._exchanges = _exchanges(url, settings, ambient)
        self._clock = ambient.clock
        self._sleep = sleep
        self._probe: threading.Thread | None = None
        self._workers = Homes(Workers)
        self._turns = Homes(lambda: threading.Semaphore(settings.max_connections))
        make = maker(transport, httpx.HTTPTransport, settings)
        self._pools = Homes(lambda: Pool(httpx.Client(transport=make(), trust_env=False)))

    def rescore(
        self, asked: Json | Sequence[Json], *, deadline_ms: float | None = None, **fields: Any
    ) -> RescoreReply:
        """Rank n-best lists.

        Args:
            asked: the utterances, or a whole body of /v1/rescore.
            deadline_ms: for the call; None takes that of the settings.
            fields: of the body, such as weights, options and model.

        Raises:
            InputError: there are no lists with texts, or JSON cannot say the request.
            RefusedRequestError: the service finds it wrong, unless `on_invalid` is "first_pass".
        """
        return self.ask(ask_rescore(asked, fields), deadline_ms=deadline_ms)

    def rescore_lattice(
        self,
        lattice: bytes | Json,
        *,
        first_pass: Sequence[str],
        deadline_ms: float | None = None,
        **fields: Any,
    ) -> LatticeReply:
        """Find the best word sequences of one lattice; `service.k2_client` takes a k2.Fsa.

        Args:
            lattice: bytes in the format of the field `format`, or an object of k2-json.
            first_pass: the decoder's own texts, best first, which stand if there is no answer.
            deadline_ms: for the call; None takes that of the settings.
            fields: symbols, context, id and final of the lattice; weights, options and model.

        Raises:
            InputError, RefusedRequestError: as in `rescore`.
        """
        return self.ask(ask_lattice(lattice, first_pass, fields), deadline_ms=deadline_ms)

    def score(
        self, texts: Sequence[str], *, deadline_ms: float | None = None, **fields: Any
    ) -> ScoreReply:
        """Probability of each text; None where there is no answer.

        Raises:
            InputError, RefusedRequestError: as in `rescore`.
        """
        return self.ask(ask_score(texts, fields), deadline_ms=deadline_ms)

    def ask(self, ask: Ask[ReplyT], *, deadline_ms: float | None = None) -> ReplyT:
        """Any request that knows what to send, how to read the answer and what stands for it.

        Raises:
            InputError, RefusedRequestError: as in `rescore`.
        """
        return self._run(self._exchange.call(ask, deadline_ms))

    @property
    def stats(self) -> Stats:
        """What has been done so far in this process."""
        return self._exchange.counts.snapshot()

    def close(self) -> None:
        """Close the connections; waits for a probe that is under way."""
        if self._probe is not None:
            self._probe.join()
        self._workers.at(this_process()).close()
        self._retire(self._pools.at(this_process()))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _exchange(self) -> Exchange:
        return self._exchanges.at(this_process())

    def _run(self, steps: Steps[T]) -> T:
        came: Answer | Failure | None = None
        while True:
            try:
                step = steps.send(came)
            except StopIteration as done:
                result: T = done.value
                return result
            came = self._do(step)

    def _do(self, step: Step) -> Answer | Failure | None:
        if isinstance(step, Send):
            return self._send(step)
        if isinstance(step, Pause):
            self._sleep(step.duration_s)
        elif isinstance(step, Probe):
            self._probe = begin_probe(partial(self._run, step.steps), step)
        else:
            self._renew()
        return None

    def _renew(self) -> None:
        try:
            self._retire(self._pools.leave(this_process()))
        except Exception as error:  # noqa: BLE001 - as in _send
            logger.warning("connections are not closed: %s", error)

    def _retire(self, pool: Pool[httpx.Client] | None) -> None:
        if pool is not None and pool.retire():
            pool.http.close()

    def _send(self, step: Send) -> Answer | Failure:
        ends_s = self._clock() + step.timeout_s
        try:
            workers = self._workers.at(this_process())
            return workers.within(lambda: self._exchanged(step, ends_s), step.timeout_s)
        except Exception as error:  # noqa: BLE001 - whatever it is, the decoder keeps its transcript
            return failure_of(error)

    def _exchanged(self, step: Send, ends_s: float) -> Answer | Failure:
        try:
            with in_turn(self._turns.at(this_process()), ends_s - self._clock()):
                pool = self._pools.at(this_process())
                pool.enter()
                try:
                    return self._receive(pool.http, step, ends_s)
                finally:
                    if pool.leave():
                        pool.http.close()
        except Exception as error:  # noqa: BLE001 - as above
            return failure_of(error)

    def _receive(self, http: httpx.Client, step: Send, ends_s: float) -> Answer:
        timeouts = TimeLeft(ends_s, step.connect_timeout_s, self._clock)
        with http.stream(**step.arguments(), extensions={"timeout": timeouts}) as response:
            content = bytearray()
            for part in response.iter_bytes():
                content += part
                require_size(len(content), step)
                require_time(ends_s - self._clock())
            return _answer(response, content)


class AsyncClient:
    """The same on asyncio event loops. See `Client` for arguments and methods.

    Connections are kept for as long as the loop that made them: a loop to each call, as of
    `asyncio.run`, means a connection to each call, which is left to the garbage collector unless
    `aclose` was awaited on that loop. Where a name server says nothing the call is over at its
    deadline, but `asyncio.run` itself waits for that thread at its end. A call that is canceled or
    late leaves its request to end by itself, which has one of `max_connections` until then.

    Args:
        sleep: lets seconds pass.
    """

    def __init__(
        self,
        url: str,
        settings: ClientSettings = _SETTINGS,
        *,
        transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
        ambient: Ambient = _AMBIENT,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._exchanges = _exchanges(url, settings, ambient)
        self._clock = ambient.clock
        self._sleep = sleep
        self._probe: threading.Thread | None = None
        self._tasks = Homes(partial(Tasks, settings.max_connections))
        make = maker(transport, httpx.AsyncHTTPTransport, settings)
        self._pools = Homes(lambda: Pool(httpx.AsyncClient(transport=make(), trust_env=False)))

    async def rescore(
        self, asked: Json | Sequence[Json], *, deadline_ms: float | None = None, **fields: Any
    ) -> RescoreReply:
        """As Client.rescore."""
        return await self.ask(ask_rescore(asked, fields), deadline_ms=deadline_ms)

    async def rescore_lattice(
        self,
        lattice: bytes | Json,
        *,
        first_pass: Sequence[str],
        deadline_ms: float | None = None,
        **fields: Any,
    ) -> LatticeReply:
        """As Client.rescore_lattice."""
        return await self.ask(ask_lattice(lattice, first_pass, fields), deadline_ms=deadline_ms)

    async def score(
        self, texts: Sequence[str], *, deadline_ms: float | None = None, **fields: Any
    ) -> ScoreReply:
        """As Client.score."""
        return await self.ask(ask_score(texts, fields), deadline_ms=deadline_ms)

    async def ask(self, ask: Ask[ReplyT], *, deadline_ms: float | None = None) -> ReplyT:
        """As Client.ask."""
        return await self._run(self._exchange.call(ask, deadline_ms))

    @property
    def stats(self) -> Stats:
        """As Client.stats."""
        return self._exchange.counts.snapshot()

    async def aclose(self) -> None:
        """Close the connections of this loop; a probe that is under way ends by itself.

        A request that nobody waits for any more has a moment to end, and is canceled then.
        """
        try:
            await self._tasks.at(this_loop()).close()
        finally:
            await self._retire(self._pools.at(this_loop()))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def _exchange(self) -> Exchange:
        return self._exchanges.at(this_process())

    async def _run(self, steps: Steps[T]) -> T:
        came: Answer | Failure | None = None
        while True:
            try:
                step = steps.send(came)
            except StopIteration as done:
                result: T = done.value
                return result
            came = await self._do(step)

    async def _do(self, step: Step) -> Answer | Failure | None:
        if isinstance(step, Send):
            return await self._send(step)
        if isinstance(step, Pause):
            await self._sleep(step.duration_s)
        elif isinstance(step, Probe):
            self._probe = begin_probe(partial(self._run_apart, step.steps), step)
        else:
            await self._renew()
        return None

    async def _renew(self) -> None:
        try:
            await self._retire(self._pools.leave(this_loop()))
        except Exception as error:  # noqa: BLE001 - as Client._send
            logger.warning("connections are not closed: %s", error)

    def _run_apart(self, steps: Steps[None]) -> None:
        """On a loop of its own: the caller's may end with its call."""

        async def run() -> None:
            try:
                await self._run(steps)
            finally:
                self._tasks.leave(this_loop())  # `asyncio.run` ends what is left
                await self._retire(self._pools.leave(this_loop()))

        asyncio.run(run())

    async def _retire(self, pool: Pool[httpx.AsyncClient] | None) -> None:
        if pool is not None and pool.retire():
            await pool.http.aclose()

    async def _send(self, step: Send) -> Answer | Failure:
        ends_s = self._clock() + step.timeout_s
        try:
            tasks = self._tasks.at(this_loop())
            return await tasks.within(lambda: self._exchanged(step, ends_s), step.timeout_s)
        except Exception as error:  # noqa: BLE001 - as Client._send
            return failure_of(error)

    async def _exchanged(self, step: Send, ends_s: float) -> Answer | Failure:
        """In a task of its own: httpcore, canceled from outside, may leave a connection in use."""
        try:
            pool = self._pools.at(this_loop())
            pool.enter()
            try:
                return await self._receive(pool.http, step, ends_s)
            finally:
                if pool.leave():
                    await pool.http.aclose()
        except Exception as error:  # noqa: BLE001 - as Client._send
            return failure_of(error)

    async def _receive(self, http: httpx.AsyncClient, step: Send, ends_s: float) -> Answer:
        timeouts = TimeLeft(ends_s, step.connect_timeout_s, self._clock)
        async with http.stream(**step.arguments(), extensions={"timeout": timeouts}) as response:
            content = bytearray()
            async for part in response.aiter_bytes():
                content += part
                require_size(len(content), step)
                require_time(ends_s - self._clock())
            return _answer(response, content)


def _answer(response: httpx.Response, content: bytearray) -> Answer:
    headers = response.headers
    return Answer(
        response.status_code, headers.get("Retry-After"), bytes(content), headers.get("X-Call-ID")
    )


def _exchanges(url: str, settings: ClientSettings, ambient: Ambient) -> Homes[Exchange]:
    """The policy, with the counts and the locks of each process."""
    exchanges = Homes(lambda: Exchange(url, settings, ambient))
    exchanges.at(this_process())  # a URL that is wrong is found now
    return exchanges
