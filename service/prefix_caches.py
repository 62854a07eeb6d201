"""A prefix cache for each model that is served, gone with the model. For the engine thread."""

from __future__ import annotations

import functools
import weakref

from quantized_lm.prefix_cache import Event, PrefixCache
from service.jobs import Served
from service.metrics import Metrics


class PrefixCaches:
    """Caches by model.

    Args:
        max_bytes: of each; 0 for none.
        metrics: where finds, misses and bytes are counted.
    """

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._caches: dict[int, PrefixCache] = {}  # by the id of a model that is alive
        metrics.prefix_cache_bytes.set_function(self.num_bytes)

    def num_bytes(self) -> int:
        """Memory of all kept trees."""
        return sum(cache.num_bytes for cache in list(self._caches.values()))

    def of(self, loaded: Served) -> PrefixCache | None:
        """The model's cache."""
        if not self._max_bytes:
            return None
        key = id(loaded.model)
        if key not in self._caches:
            count = functools.partial(self._count, loaded.name)
            self._caches[key] = PrefixCache(loaded.model, self._max_bytes, count)
            weakref.finalize(loaded.model, self._caches.pop, key, None)
        return self._caches[key]

    def _count(self, name: str, event: Event) -> None:
        self._metrics.prefix_cache[event].labels(name).inc()
