"""Rescoring a corpus on Ray: each worker loads the model once, result lines come back in order.

The cluster is the one that RAY_ADDRESS names, else one on this machine. Every node needs the
package and the model's folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ray
import ray.data

from quantized_lm.artifact import load_artifact
from quantized_lm.cli.corpus import Corpus
from quantized_lm.combine import Weights
from quantized_lm.errors import DataError, SecondpassError
from quantized_lm.list_scoring import Json, rescore_utterances
from quantized_lm.nbest import read_records, record_to_utterance

_LISTS_PER_TASK = 64


class RescoreLists:
    """A worker; it has one CPU, and so one thread."""

    def __init__(self, corpus: Corpus, weights: Weights) -> None:
        self._loaded = load_artifact(corpus.model, threads=1)
        self._weights = weights
        self._corpus = corpus

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Result lines of lists; what is wrong with one of them comes as `error`."""
        lines = [str(line) for line in batch["line"]]
        utterances = (
            record_to_utterance(json.loads(line), str(where), first_pass=self._corpus.first_pass)
            for line, where in zip(lines, batch["where"], strict=True)
        )
        try:
            results = rescore_utterances(
                utterances,
                self._loaded,
                self._weights,
                keeps_failed=self._corpus.keeps_failed,
            )
            return {
                "result": [json.dumps(result) for result in results],
                "error": [""] * len(lines),
            }
        except SecondpassError as error:
            return {"result": [""], "error": [str(error)]}


def rescore_corpus(corpus: Corpus, weights: Weights) -> Iterator[Json]:
    """Result lines of all lists, in their order.

    Raises:
        DataError: a list cannot be ranked; the message names the utterance and the field.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells its plan on standard error
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="error")
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    rows = [
        {"where": where, "line": json.dumps(record)}
        for where, record in read_records(corpus.source)
    ]
    if not rows:
        return
    most = corpus.workers or int(ray.cluster_resources()["CPU"])
    tasks = -(-len(rows) // _LISTS_PER_TASK)
    model = None if corpus.model is None else corpus.model.resolve()
    sent = replace(corpus, model=model)
    rescored = ray.data.from_items(rows, override_num_blocks=tasks).map_batches(
        RescoreLists,
        fn_constructor_args=(sent, weights),
        batch_size=_LISTS_PER_TASK,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(most, tasks))),
    )
    for row in rescored.iter_rows():
        if row["error"]:
            raise DataError(row["error"])
        yield json.loads(row["result"])
