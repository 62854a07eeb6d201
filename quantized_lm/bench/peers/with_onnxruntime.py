"""ONNX Runtime: dynamically quantized int8, on padded batches or on the tree.

The quantizer is ONNX Runtime's own with one scale per output channel; one graph serves both.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic

from . import gpt2_graph, protocol, shapes
from .list_runner import ListRunner


class OnnxRuntime:
    """One session; `variant` is "padded" or "tree"."""

    def __init__(self, task: protocol.Task) -> None:
        lists = task.read_lists()
        path = _int8_file(task, lists[0])
        self._size = path.stat().st_size
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = task.threads
        # Threads may wait actively inside a call, but not between calls.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._lists = ListRunner(self._run, lists, task.variant)

    def describe(self) -> protocol.Description:
        """The version, the ONNX file's size and the batch."""
        return protocol.Description(
            f"ONNX Runtime {onnxruntime.__version__}", self._size, self._lists.setting
        )

    def score(self, index: int) -> list[float]:
        """Pad or merge, run, sum."""
        return self._lists.score(index)

    def _run(self, graph: shapes.Graph) -> NDArray[np.float32]:
        arguments = {name: getattr(graph, name) for name in shapes.ARGUMENTS}
        log_prob: NDArray[np.float32] = self._session.run(None, arguments)[0]
        return log_prob


def _int8_file(task: protocol.Task, hypotheses: list[list[int]]) -> Path:
    path = Path(task.cache) / "onnxruntime.int8.onnx"
    if path.exists():
        return path
    plain, beside = path.with_name("onnxruntime.float32.onnx"), path.with_name("partial.onnx")
    if not plain.exists():
        _export(task, hypotheses, plain)
    quantize_dynamic(plain, beside, weight_type=QuantType.QInt8, per_channel=True)
    return beside.rename(path)


def _export(task: protocol.Task, hypotheses: list[list[int]], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own doings
        torch.onnx.export(
            gpt2_graph.Gpt2Graph(task.weights, task.heads).eval(),
            gpt2_graph.example(hypotheses),
            path,
            dynamo=False,
            opset_version=20,
            input_names=list(shapes.ARGUMENTS),
            output_names=["log_prob"],
            dynamic_axes={
                "tokens": {0: "B", 1: "T"},
                "positions": {0: "T"},
                "mask": {0: "T", 1: "T"},
                "rows": {0: "C"},
                "targets": {0: "C"},
            },
        )


if __name__ == "__main__":
    protocol.main(OnnxRuntime)
