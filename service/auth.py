"""Who may do what: the API key of a request, its scope, and its share.

The path alone says which scope is needed, before anything of the body is read; everything under
/v1/ needs one, so that a new route is protected without being told to be.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api_keys import (
    ApiKey,
    KeyFileError,
    find_key,
    is_open_to_others,
    read_keys,
    required_scope,
)
from service.errors import ForbiddenError, QuotaError, UnauthenticatedError, handle
from service.metrics import OTHER_MODEL, Metrics
from service.rate_limits import TokenBucket

logger = logging.getLogger(__name__)


class Caller:
    """A key and what its owner has used up of late."""

    def __init__(self, key: ApiKey, clock: Callable[[], float]) -> None:
        self.key = key
        self._requests = _bucket(key.requests_per_s, clock)
        self._tree_nodes = _bucket(key.tree_nodes_per_s, clock)

    def has_limits_of(self, key: ApiKey) -> bool:
        """Whether a key allows as much as this caller's does."""
        return (self.key.requests_per_s, self.key.tree_nodes_per_s) == (
            key.requests_per_s,
            key.tree_nodes_per_s,
        )

    def take_request(self) -> None:
        """Count a request that begins.

        Raises:
            QuotaError: too many have begun, or did too much.
        """
        quotas = ((self._requests, "requests"), (self._tree_nodes, "tree nodes"))
        waits = [
            (wait_s, f"{bucket.per_s:g} {unit} per second")
            for bucket, unit in quotas
            if bucket is not None and (wait_s := bucket.retry_after_s()) is not None
        ]
        if waits:
            wait_s, quota = max(waits)  # sooner, the other would refuse
            raise QuotaError(
                f"the key {self.key.name} has used up its {quota}; send this again in {wait_s} s",
                retry_after_s=wait_s,
            )
        if self._requests is not None:
            self._requests.take(1.0)

    def take_tree_nodes(self, tree_nodes: int) -> None:
        """Count what the engine did for a request."""
        if self._tree_nodes is not None:
            self._tree_nodes.take(tree_nodes)


class KeyRing:
    """The keys of the file, and who uses them.

    Args:
        path: the file; None if requests need no key.
        clock: seconds, monotonic.

    Raises:
        KeyFileError: the file cannot be read or is wrong.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._keys: tuple[ApiKey, ...] = ()
        self._callers: Mapping[str, Caller] = {}
        if path is not None:
            self._read(path)

    @property
    def is_open(self) -> bool:
        """Whether scoring needs no key."""
        return self._path is None

    def reload(self) -> None:
        """Read the file again; if it is broken the old keys stay. Logs a line."""
        if self._path is None:
            return
        try:
            self._read(self._path)
        except KeyFileError as error:
            logger.error("API keys are kept as they were: %s", error)  # noqa: TRY400 - one line
        else:
            logger.info("%d API keys are known", len(self._keys))

    def find(self, secret: str) -> Caller | None:
        """Whose key this is."""
        key = find_key(self._keys, secret)
        return None if key is None else self._callers[key.name]

    def _read(self, path: Path) -> None:
        keys = read_keys(path)
        if is_open_to_others(path):
            logger.warning("%s may be read by everyone on this machine; chmod o-r %s", path, path)
        callers = {}
        for key in keys:
            old = self._callers.get(key.name)
            if old is not None and old.has_limits_of(key):
                old.key = key  # what it owes stays owed
                callers[key.name] = old
            else:
                callers[key.name] = Caller(key, self._clock)
        self._callers, self._keys = callers, keys


class Guard:
    """ASGI middleware that lets a request through or answers it.

    Also the last place where an exception becomes an answer: beyond it a traceback would be logged
    a second time.
    """

    def __init__(self, app: ASGIApp, *, keys: KeyRing, metrics: Metrics) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_begun, caller = False, None

        async def send_noting(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        try:
            caller = self._admitted(scope)
            await self._app(scope, receive, send_noting)
        except Exception as error:
            if is_begun:
                raise
            response = await handle(Request(scope), error)
            await response(scope, receive, send)
        finally:
            tree_nodes = self._tree_nodes(scope["state"])
            if caller is not None:
                caller.take_tree_nodes(tree_nodes)

    def _admitted(self, scope: Scope) -> Caller | None:
        """Whose request this is; None if nobody needs to know.

        Raises:
            UnauthenticatedError, ForbiddenError, QuotaError: it may not pass.
        """
        needed = required_scope(scope["path"].removeprefix(scope.get("root_path", "")))
        if needed is None or (needed == "score" and self._keys.is_open):
            return None
        if self._keys.is_open:
            self._metrics.auth_failures.labels("no_keys").inc()
            raise ForbiddenError(
                "admin routes need a key with the scope admin; make one by `secondpass api-key new "
                "--name NAME --scope admin --file keys.json`, with the file's name in "
                "SECONDPASS_API_KEYS_FILE"
            )
        caller = self._authenticated(Headers(scope=scope).get("authorization"))
        if needed not in caller.key.scopes:
            self._metrics.auth_failures.labels("scope").inc()
            raise ForbiddenError(f"the key {caller.key.name} lacks the scope {needed}")
        try:
            caller.take_request()
        except QuotaError:
            self._metrics.shed.labels(OTHER_MODEL, "quota").inc()
            raise
        return caller

    def _tree_nodes(self, state: Mapping[str, Any]) -> int:
        """What the engine did for a request: for its answer, and in vain."""
        nodes: int = state["usage"]["tree_nodes"] if "usage" in state else 0
        if "arrival" in state:
            lost = state["arrival"].lost
            for model, unanswered in lost.unanswered.items():
                self._metrics.tokens.labels(model, "lost").inc(unanswered)
            nodes += lost.tree_nodes + lost.unanswered.total()
        return nodes

    def _authenticated(self, authorization: str | None) -> Caller:
        if authorization is None:
            self._metrics.auth_failures.labels("missing").inc()
            raise UnauthenticatedError("there is no Authorization; need `Bearer` and an API key")
        kind, _, secret = authorization.partition(" ")
        if kind.lower() != "bearer":
            self._metrics.auth_failures.labels("malformed").inc()
            raise UnauthenticatedError("Authorization is of another kind; need `Bearer` and a key")
        caller = self._keys.find(secret.strip())
        if caller is None:
            self._metrics.auth_failures.labels("unknown").inc()
            raise UnauthenticatedError("the API key is not known; need one that is")
        return caller


def _bucket(per_s: float | None, clock: Callable[[], float]) -> TokenBucket | None:
    return None if per_s is None else TokenBucket(per_s, clock)
