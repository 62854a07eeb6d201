"""Name -> loaded model. Loads at startup, answers which model a request means.

The mapping is never changed, only replaced by another one: whoever reads it once has a consistent
set of models for as long as it likes, and a model lives until the last one who chose it is done.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from quantized_lm.artifact import LoadedModel
from quantized_lm.errors import InputError
from service.errors import ModelConflictError, ModelNotFoundError
from service.metrics import SEVERAL_MODELS, Metrics
from service.schemas import LmChoice

LoadModel = Callable[[Path, str], LoadedModel]
PIN = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})")


class Registry:
    """The models that are served, by name.

    Raises:
        ModelConflictError: there is none, or two have one name.
    """

    def __init__(self, models: Sequence[LoadedModel]) -> None:
        if not models:
            raise ModelConflictError("no model is given; need a model folder or more")
        by_name = {model.name: model for model in models}
        if len(by_name) < len(models):
            names = ", ".join(model.name for model in models)
            raise ModelConflictError(f"models are named {names}; need different names")
        self._models: Mapping[str, LoadedModel] = MappingProxyType(by_name)

    @property
    def models(self) -> Mapping[str, LoadedModel]:
        """All of them as of now, in the order they were first loaded."""
        return self._models

    def put(self, model: LoadedModel) -> None:
        """Serve a model to all who ask from now on, in place of the one of its name."""
        self._models = MappingProxyType({**self._models, model.name: model})

    def remove(self, name: str) -> None:
        """Serve a model no longer to whoever asks from now on."""
        left = {key: model for key, model in self._models.items() if key != name}
        self._models = MappingProxyType(left)

    def get(self, name: str) -> LoadedModel:
        """The model of that name, which may end in "@" and its revision or the beginning of it.

        Raises:
            ModelNotFoundError: none has it, or the one that has it is of another revision.
        """
        return _named(self._models, name)

    def choose(self, name: str | None, lms: Sequence[LmChoice] | None = None) -> list[LoadedModel]:
        """The models a request names, in its order; without a name, the only one.

        Raises:
            ModelNotFoundError: one is not loaded, or none is named and several are loaded.
            InputError: one is named twice, with its revision and without.
        """
        models = self._models
        if lms:
            chosen = [_named(models, lm.model) for lm in lms]
            if len({model.name for model in chosen}) < len(chosen):
                raise InputError("lms names one model twice; name each once", pointer="/lms")
            return chosen
        if name is not None:
            return [_named(models, name)]
        if len(models) > 1:
            raise ModelNotFoundError(
                f"no model is named and several are loaded; need one of {_known(models)}"
            )
        return list(models.values())


def _named(models: Mapping[str, LoadedModel], name: str) -> LoadedModel:
    if name in models:
        return models[name]
    base, _, revision = name.rpartition("@")
    if base not in models:
        raise ModelNotFoundError(f"model is {name!r}; need one of {_known(models)}")
    model = models[base]
    pin = PIN.fullmatch(revision)
    if pin is None:
        raise ModelNotFoundError(
            f"revision is {revision!r}; need 12 to 64 hex digits, such as those of {model.revision}"
        )
    if not model.revision.startswith(f"sha256:{pin[1]}"):
        raise ModelNotFoundError(
            f"model is {name!r}; the revision of {base} that is loaded is {model.revision}"
        )
    return model


def _known(models: Mapping[str, LoadedModel]) -> str:
    return ", ".join(sorted(models))


def joint_name(models: Sequence[LoadedModel]) -> str:
    """The models' names as one string."""
    return ",".join(model.name for model in models)


def joint_revision(models: Sequence[LoadedModel]) -> str:
    """The models' revisions as one string, in the order of their names."""
    return ",".join(model.revision for model in models)


def joint_label(models: Sequence[LoadedModel]) -> str:
    """The models as one metric label: a name, or "several"."""
    return models[0].name if len(models) == 1 else SEVERAL_MODELS


def load_registry(
    paths: Sequence[Path],
    load: LoadModel,
    *,
    backend: str,
    metrics: Metrics,
    clock: Callable[[], float] = time.perf_counter,
) -> Registry:
    """Load and check every artifact.

    Raises:
        ArtifactError: one is refused.
        ModelConflictError: there is none, or two have one name.
    """
    models, seconds = [], []
    for path in paths:
        started_s = clock()
        models.append(load(path, backend))
        seconds.append(clock() - started_s)
    registry = Registry(models)
    for model, load_s in zip(models, seconds, strict=True):
        show_model(metrics, model, load_s)
    return registry


def require_budget(model: LoadedModel, budget_tokens: int) -> None:
    """Refuse a model whose longest text would not fit into a forward pass.

    Raises:
        ModelConflictError: it would not.
    """
    largest = model.model.max_tokens + 1
    if budget_tokens < largest:
        raise ModelConflictError(
            f"budget_tokens is {budget_tokens}; one text of {model.name} may need "
            f"{largest} tree nodes, so need at least that"
        )


def show_model(metrics: Metrics, model: LoadedModel, load_s: float) -> None:
    """Say in the metrics that a model is served, how long it took to load, what waits for it."""
    metrics.model_info.labels(*_info(model)).set(1)
    metrics.model_loaded.labels(model.name).set(1)
    metrics.model_load.labels(model.name).set(load_s)
    metrics.model_bytes.labels(model.name, "weights").set(model.manifest.size_bytes)
    # At 0 before anything has waited: a pod that has no number an autoscaler takes for busy.
    metrics.queue_requests.labels(model.name)
    metrics.queue_tokens.labels(model.name)


def hide_model(metrics: Metrics, model: LoadedModel) -> None:
    """Take from the metrics what `show_model` put there."""
    metrics.model_info.remove(*_info(model))
    metrics.model_loaded.remove(model.name)
    metrics.model_load.remove(model.name)
    metrics.model_bytes.remove(model.name, "weights")


def _info(model: LoadedModel) -> tuple[str, ...]:
    manifest = model.manifest
    bits = f"{manifest.bits_per_weight:.3f}"
    return (model.name, model.revision, manifest.architecture, bits, model.backend)
