"""OpenVINO: int8 weights and activations by NNCF, on padded batches or on the tree.

NNCF calibrates on three of the lists that are timed, in the form in which they are timed.
"""

from __future__ import annotations

from pathlib import Path

import nncf
import numpy as np
import openvino
import torch
from numpy.typing import NDArray

from . import gpt2_graph, protocol, shapes
from .list_runner import ListRunner

_CALIBRATION_LISTS = 3


class OpenVino:
    """One compiled model; `variant` is "padded" or "tree"."""

    def __init__(self, task: protocol.Task) -> None:
        lists = task.read_lists()
        path = _int8_file(task, lists)
        self._size = path.with_suffix(".bin").stat().st_size
        core = openvino.Core()
        compiled = core.compile_model(
            path,
            "CPU",
            {"INFERENCE_NUM_THREADS": task.threads, "PERFORMANCE_HINT": "LATENCY"},
        )
        self._request = compiled.create_infer_request()
        self._lists = ListRunner(self._run, lists, task.variant)

    def describe(self) -> protocol.Description:
        """The version, the weights file's size and the batch."""
        version = f"OpenVINO {openvino.__version__.split('-')[0]}, NNCF {nncf.__version__}"
        return protocol.Description(version, self._size, self._lists.setting)

    def score(self, index: int) -> list[float]:
        """Pad or merge, run, sum."""
        return self._lists.score(index)

    def _run(self, graph: shapes.Graph) -> NDArray[np.float32]:
        self._request.infer([getattr(graph, name) for name in shapes.ARGUMENTS])
        log_prob: NDArray[np.float32] = self._request.get_output_tensor().data
        return log_prob


def _int8_file(task: protocol.Task, lists: list[list[list[int]]]) -> Path:
    path = Path(task.cache) / f"openvino.{task.variant}.xml"
    if path.exists():
        return path
    model = openvino.convert_model(
        gpt2_graph.Gpt2Graph(task.weights, task.heads).eval(),
        example_input=gpt2_graph.example(lists[0]),
        input=[
            ("tokens", [-1, -1], openvino.Type.i64),
            ("positions", [-1], openvino.Type.i64),
            ("mask", [-1, -1], openvino.Type.f32),
            ("rows", [-1], openvino.Type.i64),
            ("targets", [-1], openvino.Type.i64),
        ],
    )
    graphs = [
        shapes.tree(one).graph if task.variant == "tree" else shapes.padded_graph(one)[0]
        for one in lists[:_CALIBRATION_LISTS]
    ]
    samples = [[getattr(graph, name) for name in shapes.ARGUMENTS] for graph in graphs]
    quantized = nncf.quantize(model, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER)
    openvino.save_model(quantized, path, compress_to_fp16=False)
    return path


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    protocol.main(OpenVino)
