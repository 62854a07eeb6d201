"""A task of the made-up language: every kind of row, both architectures, seconds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from quantized_lm.errors import RecipeError
from quantized_lm.pipeline.reproduce.plan import Plan, make_plan
from quantized_lm.pipeline.reproduce.run import run_cells
from quantized_lm.pipeline.reproduce.store import Store
from quantized_lm.pipeline.reproduce.task import Task, merged
from quantized_lm.pipeline.reproduce.view import View
from quantized_lm.records import build
from tests.tiny import write_text

TINY_TASK = """
name: tiny
title: A made-up language
protocol: Every line alone.
license: none
training_data: made up
seed: 3
base:
  corpus:
    train: [tiny.txt.gz]
    held_out: tiny.txt.gz
    dev_lines: 20
    test_lines: 30
    vocab_size: 64
    vocab_from: [tiny.txt.gz]
  model: {max_tokens: 48}
  train:
    {steps: 12, window: 48, batch_windows: 4, matrix_lr: 0.02, other_lr: 0.01, warmup_steps: 2,
     eval_every: 6, compile: false}
  quantize: {batch_windows: 4, matrix_lr: 0.005, other_lr: 0.002, eval_every: 2}
  choices: [1bit, 2bit, 8bit]
  sensitivity_windows: 2
  methods:
    rounded: {steps: 0}
    distilled: {steps: 4}
    rated: {steps: 4, method: rated}
    priced: {steps: 4, method: rated, settings: {counts_file: true, one_price: true}}
    search: {steps: 0}
  search: {steps: 4, eval_every: 2}
architectures:
  transformer: {model: {num_layers: 1, model_dim: 32, num_heads: 2, ffn_dim: 64}}
  lstm: {model: {num_layers: 1, model_dim: 32}}
sizes:
  small: {}
  cut: {all: {cut_lines: {tiny.txt.gz: 150}}}
rows:
  - {name: float32, kind: float, label: float32}
  - {name: rtn-8bit, kind: uniform, label: 8 bits, format: 8bit, by: rounded}
  - {name: qat-2bit, kind: uniform, label: 2 bits, format: 2bit, by: distilled}
  - {name: mixed-manual, kind: mixed, label: by hand, metric: manual, compression: 9, by: distilled}
  - {name: mixed-kl, kind: mixed, label: by KL, metric: kl, compression: 9, by: distilled}
  - {name: mixed-nas, kind: mixed, label: by NAS, metric: nas, compression: 9, by: distilled}
  - {name: mixed-even, kind: mixed, label: even, metric: kl, bytes_of: 2bit, by: rounded}
  - {name: rated, kind: rated, label: by rate, metric: kl, compression: 8, by: rated}
  - {name: priced, kind: rated, label: at one price, metric: kl, at_rates: true, compression: 8,
     by: priced}
  - {name: rated-even, kind: rated, label: alike, format: 4bit:quinary, compression: 8, by: rated}
  - {name: small, kind: smaller_float, label: smaller, compression: 4}
  - {name: smaller, kind: smaller_float, label: smaller still, compression: 8}
run_first: [float32, qat-*]
targets:
  - {compression: 2, max_ratio: 1.5, everywhere: true, accepts_interval: true}
  - {compression: 100, max_ratio: 1.0}
"""


def tiny_task(**changes: Any) -> Task:
    """The task, with fields of `base` merged in."""
    task = build(Task, yaml.safe_load(TINY_TASK), where="tiny", error=RecipeError)
    return replace(task, base=merged(task.base, changes))


def only_rows(task: Task, *names: str) -> Task:
    """With these rows alone."""
    rows = tuple(row for row in task.rows if row["name"] in names)
    return replace(task, rows=rows, run_first=())


def run_plan(plan: Plan, root: Path, only: str = "*") -> dict[str, str]:
    """Run it and return the failures."""
    return run_cells(plan.in_order(only), Store(root), View(Console(file=StringIO())))


@dataclass(frozen=True)
class TinyTable:
    """A finished plan."""

    plan: Plan
    store: Store
    failures: dict[str, str]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    write_text(folder, lines=300)
    return folder


@pytest.fixture(scope="session")
def tiny_table(text: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyTable:
    plan = make_plan(tiny_task(), size="small", data=text, architectures=["transformer"])
    root = tmp_path_factory.mktemp("table")
    return TinyTable(plan, Store(root), run_plan(plan, root))
