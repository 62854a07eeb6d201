"""The whole server around a table instead of a model; a pass takes as long as the argument says."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import service.server
from service.app import create_app
from service.settings import Settings
from tests.fakes import FakeLoader, TableModel, TableState, fake_loaded


@dataclass
class SlowModel(TableModel):
    """A table that takes its time."""

    pass_s: float = 0.0

    def extend(self, states: Sequence[TableState], *args: Any) -> list[Any]:
        """As LanguageModel.extend."""
        time.sleep(self.pass_s)
        return super().extend(states, *args)


if __name__ == "__main__":
    model = fake_loaded(model=SlowModel(pass_s=float(sys.argv[1])))
    loading = functools.partial(create_app, load=FakeLoader(model))
    vars(service.server)["create_app"] = loading
    service.server.serve(Settings(models=(Path(model.name),)))
