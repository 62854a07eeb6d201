"""Load, reload and unload models while others, and they themselves, are being served.

A model is loaded beside what is served, on a thread: verified, with its golden scores reproduced,
and run once. Only then is it put into the registry. What goes wrong before that changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from quantized_lm.artifact import LoadedModel
from quantized_lm.errors import ArtifactError, SecondpassError
from quantized_lm.manifest import Manifest, read_manifest
from quantized_lm.memory import available_bytes
from service.default_weights import read_default_weights, require_served
from service.errors import (
    LastModelError,
    MemoryBudgetError,
    ModelLoadingError,
    ModelNotFoundError,
)
from service.metrics import Metrics
from service.registry import LoadModel, Registry, hide_model, require_budget, show_model
from service.served_schemas import AdminModel
from service.settings import Settings

MARGIN_BYTES = 64 << 20  # for the requests that are served meanwhile
WARM_TOKENS = 64
_MANIFEST = "manifest.json"
logger = logging.getLogger(__name__)


class ModelControl:
    """Changes which models a registry holds. Its methods are called on one event loop.

    Args:
        registry: what is changed.
        load: (model folder, backend) -> model.
        settings: the folder that models may come from, and those that were given at startup.
        metrics: where models are shown and reloads counted.
        available: bytes of memory that may still be taken; None if that is not known.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        registry: Registry,
        load: LoadModel,
        settings: Settings,
        metrics: Metrics,
        available: Callable[[], int | None] = available_bytes,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._registry = registry
        self._load = load
        self._settings = settings
        self._metrics = metrics
        self._available = available
        self._clock = clock
        self._given: Mapping[str, Path] = dict(
            zip(registry.models, settings.models, strict=True)  # in the order they were loaded
        )
        self._busy: dict[str, asyncio.Event] = {}  # what is set once a model's change is over
        self._errors: dict[str, str] = {}
        self._loading = asyncio.Lock()  # one at a time: two would both count on the same memory

    async def list_models(self) -> list[AdminModel]:
        """Every model that is loaded or could be, by name."""
        folders = await asyncio.to_thread(self._folders)
        models = self._registry.models
        return [self._describe(name, models.get(name)) for name in sorted({*models, *folders})]

    async def load(self, name: str) -> AdminModel:
        """Serve a model; nothing is done if it is served and it, with its weights, has not changed.

        Raises:
            ModelNotFoundError: no folder has that name.
            ModelLoadingError: it is being loaded.
            MemoryBudgetError: there is no room for it.
            ArtifactError: it is refused.
        """
        await self._change(name, is_forced=False)
        return self._describe(name, self._registry.models.get(name))

    async def reload(self, name: str) -> AdminModel:
        """Load a model that is served from its folder again; if that fails the old one stays.

        Raises:
            ModelNotFoundError: it is not served, or its folder is gone.
            ModelLoadingError, MemoryBudgetError, ArtifactError: as `load`.
        """
        self._require_served(name)
        await self._change(name, is_forced=True)
        return self._describe(name, self._registry.models.get(name))

    async def unload(self, name: str) -> AdminModel:
        """Serve a model no longer; requests that have chosen it are finished.

        Raises:
            ModelNotFoundError: it is not served.
            ModelLoadingError: it is being loaded.
            LastModelError: it is the only one.
        """
        self._require_served(name)
        with self._alone(name):
            if len(self._registry.models) == 1:
                raise LastModelError(f"{name} is the only model; need another one before it goes")
            hide_model(self._metrics, self._registry.models[name])
            self._registry.remove(name)
        self._metrics.model_reloads.labels(name, "unloaded").inc()
        logger.info("model %s is unloaded", name)
        return self._describe(name, None)

    async def reload_changed(self) -> None:
        """Reload every model that has changed, or whose weights have; logs a line for each.

        One that is being loaded is looked at once it is: its files may have changed since it began.
        """
        names = list(self._registry.models)
        changes = (self._change_next(name) for name in names)
        for name, change in zip(
            names, await asyncio.gather(*changes, return_exceptions=True), strict=True
        ):
            if isinstance(change, BaseException):
                is_ours = not isinstance(change, SecondpassError)
                told = change if is_ours else None
                logger.error("model %s is kept as it is: %s", name, change, exc_info=told)
            elif not change:
                logger.info("model %s is unchanged", name)

    async def _change_next(self, name: str) -> bool:
        """Change a model if it has changed, after whoever changes it now."""
        while name in self._busy:
            await self._busy[name].wait()
        return await self._change(name, is_forced=False)

    async def _change(self, name: str, *, is_forced: bool) -> bool:
        """Put what a model's folder holds where requests find it, and say whether that was done.

        Args:
            is_forced: whether it is done even if nothing has changed.
        """
        with self._alone(name), self._noting_failure(name):
            folder = await self._folder(name)
            old = self._registry.models.get(name)
            if (
                old is not None
                and not is_forced
                and await asyncio.to_thread(self._is_current, old, folder)
            ):
                return False
            async with self._loading:
                started_s = self._clock()
                model = await asyncio.to_thread(self._prepare, name, folder)
                load_s = self._clock() - started_s
            if old is not None:
                hide_model(self._metrics, old)
            self._registry.put(model)
            show_model(self._metrics, model, load_s)
        self._errors.pop(name, None)
        self._metrics.model_reloads.labels(name, "ok").inc()
        logger.info("model %s is %s", name, model.revision)
        return True

    def tuned_weights(self) -> dict[str, dict[str, float]]:
        """What the weights files say, by model. Reads files: not for the event loop.

        Raises:
            WeightsFileError: they are unusable, or of a model that cannot be served.
        """
        tuned = read_default_weights(self._settings.weights_files)
        if self._settings.model_folder is None:  # otherwise the model may come later
            require_served(tuned, self._given)
        return tuned

    def _is_current(self, model: LoadedModel, folder: Path) -> bool:
        """Whether a model is what its folder and the weights files hold. On a thread."""
        manifest = read_manifest(folder)
        weights = self.tuned_weights().get(model.name, manifest.default_weights)
        return (model.revision, model.manifest.default_weights) == (
            f"sha256:{manifest.sha256}",
            weights,
        )

    def _prepare(self, name: str, folder: Path) -> LoadedModel:
        """A model that is fit to be served. On a thread."""
        manifest = read_manifest(folder)
        if manifest.name != name:
            raise ArtifactError(
                f"{folder / _MANIFEST} names the model {manifest.name!r}; need {name!r}"
            )
        self._require_memory(manifest)
        self.tuned_weights()  # which the loader reads as well, and does not hold against the rest
        model = self._load(folder, self._settings.backend)
        require_budget(model, self._settings.budget_tokens)
        warm(model)
        return model

    def _require_memory(self, manifest: Manifest) -> None:
        available = self._available()
        needed = loading_bytes(manifest) + MARGIN_BYTES
        if available is not None and available < needed:
            raise MemoryBudgetError(
                f"{manifest.name} needs {needed >> 20} MiB while it is loaded; "
                f"{available >> 20} MiB are left: unload another model first"
            )

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """The block is the only one that changes this model.

        Raises:
            ModelLoadingError: another one does.
        """
        if name in self._busy:
            raise ModelLoadingError(f"{name} is being loaded; wait until it is")
        self._busy[name] = asyncio.Event()
        try:
            yield
        finally:
            self._busy.pop(name).set()

    @contextmanager
    def _noting_failure(self, name: str) -> Iterator[None]:
        """Remember and count what goes wrong, but with a name that nobody has heard of."""
        try:
            yield
        except Exception as error:
            is_known = name in self._registry.models or not isinstance(error, ModelNotFoundError)
            if is_known:
                self._errors[name] = str(error)
                self._metrics.model_reloads.labels(name, "failed").inc()
            raise

    async def _folder(self, name: str) -> Path:
        """Where a model is read from.

        Raises:
            ModelNotFoundError: no folder has that name.
        """
        folders = await asyncio.to_thread(self._folders)
        if name not in folders:
            where = self._settings.model_folder
            remedy = "set SECONDPASS_MODEL_FOLDER" if where is None else f"put it into {where}"
            known = ", ".join(sorted(folders))
            raise ModelNotFoundError(f"model is {name!r}; need one of {known}, or {remedy}")
        return folders[name]

    def _folders(self) -> Mapping[str, Path]:
        """Name -> folder of every model that may be loaded. On a thread.

        A name is only ever looked up among what the folder lists, so none can lead out of it.
        """
        top = self._settings.model_folder
        found = {} if top is None else {path.name: path for path in _inside(top)}
        return {**found, **self._given}

    def _require_served(self, name: str) -> None:
        if name not in self._registry.models:
            raise ModelNotFoundError(
                f"model is {name!r}; need one of {', '.join(sorted(self._registry.models))}"
            )

    def _describe(self, name: str, model: LoadedModel | None) -> AdminModel:
        return AdminModel(
            name=name,
            state="loaded" if model is not None else "loadable",
            is_busy=name in self._busy,
            revision=None if model is None else model.revision,
            last_error=self._errors.get(name),
        )


def loading_bytes(manifest: Manifest) -> int:
    """Most memory that loading takes: the files, what they unpack to, and float32 while it does."""
    packed_bytes = sum(entry.packed_bytes for entry in manifest.tensors.values())
    return manifest.size_bytes + packed_bytes + 4 * manifest.parameters


def warm(model: LoadedModel) -> None:
    """Run one forward pass, so that the first request finds memory and threads awake."""
    length = min(WARM_TOKENS, model.model.max_tokens)
    chain = np.arange(length, dtype=np.int32)
    tokens = chain % np.int32(model.model.vocab_size)
    model.model.extend([model.model.new_state()], [chain], [tokens])


def _inside(top: Path) -> Iterator[Path]:
    """Model folders in a folder; one that leads out of it, or holds a link that does, is none."""
    try:
        entries = sorted(top.iterdir())
    except OSError as error:
        logger.warning("model_folder cannot be read: %s", error)
        return
    root = top.resolve()
    for entry in entries:
        if (entry / _MANIFEST).is_file() and all(
            path.resolve().is_relative_to(root) for path in (entry, *entry.iterdir())
        ):
            yield entry
