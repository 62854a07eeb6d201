"""The cost model of every model, by its name; shown in the metrics."""

from __future__ import annotations

from functools import partial

from service.cost_model import TERMS, CostModel
from service.metrics import Metrics


class Costs:
    """Model name -> what its work costs. A model that is replaced hands its costs on."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._by_name: dict[str, CostModel] = {}

    def of(self, name: str) -> CostModel:
        """The one of that name; a new one knows the prior alone."""
        found = self._by_name.get(name)
        if found is None:
            found = self._by_name[name] = CostModel()
            for term in TERMS:
                self._metrics.cost.labels(name, term).set_function(partial(found.term, term))
        return found
