"""Name -> loaded model. Loads at startup, answers which model a request means."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from quantized_lm.artifact import LoadedModel
from service.errors import ModelConflictError, ModelNotFoundError
from service.metrics import SEVERAL_MODELS, Metrics
from service.schemas import LmChoice

LoadModel = Callable[[Path, str], LoadedModel]


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
        self.models: Mapping[str, LoadedModel] = MappingProxyType(by_name)

    def get(self, name: str) -> LoadedModel:
        """The model of that name.

        Raises:
            ModelNotFoundError: none has it.
        """
        if name not in self.models:
            raise ModelNotFoundError(f"model is {name!r}; need one of {self._known()}")
        return self.models[name]

    def choose(self, name: str | None, lms: Sequence[LmChoice] | None = None) -> list[LoadedModel]:
        """The models a request names, in its order; without a name, the only one.

        Raises:
            ModelNotFoundError: one is not loaded, or none is named and several are loaded.
        """
        if lms:
            return [self.get(lm.model) for lm in lms]
        if name is not None:
            return [self.get(name)]
        if len(self.models) > 1:
            raise ModelNotFoundError(
                f"no model is named and several are loaded; need one of {self._known()}"
            )
        return list(self.models.values())

    def _known(self) -> str:
        return ", ".join(sorted(self.models))


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
    models = []
    for path in paths:
        started_s = clock()
        model = load(path, backend)
        metrics.model_load.labels(model.name).set(clock() - started_s)
        models.append(model)
    registry = Registry(models)
    for model in models:
        manifest = model.manifest
        metrics.model_info.labels(
            model.name,
            model.revision,
            manifest.architecture,
            f"{manifest.bits_per_weight:.3f}",
            model.backend,
        ).set(1)
        metrics.model_loaded.labels(model.name).set(1)
        metrics.model_bytes.labels(model.name, "weights").set(manifest.size_bytes)
    return registry
