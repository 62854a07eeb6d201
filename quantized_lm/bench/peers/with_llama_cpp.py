"""llama.cpp: each token of the tree in one batch, with the hypotheses it belongs to as sequences.

The GGUF file is written here in float32 and quantized by llama.cpp itself. Batches are prepared
before anything is timed; the log-softmax over its logits is torch's and is timed.
"""

from __future__ import annotations

import ctypes
import itertools
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from . import protocol, shapes

_UBATCHES = (256, 512, 1024)
_FILE_TYPES = {
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
}
# Tensors of a block: name in Hugging Face's GPT-2, name in GGUF.
_BLOCK = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


class LlamaCpp:
    """The C interface: `llama_decode` on a batch whose tokens have several sequence ids."""

    def __init__(self, task: protocol.Task) -> None:
        torch.set_num_threads(task.threads)
        path = _quantized_file(task)
        self._size = path.stat().st_size
        self._trees = [shapes.tree(hypotheses) for hypotheses in task.read_lists()]
        self._batches = [_batch(tree) for tree in self._trees]
        self._num_sequences = max(len(tree.leaf) for tree in self._trees)
        self._threads = task.threads
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {path.name}")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self._model)
        )
        self._context = None
        self._ubatch = 0
        self._ubatch = protocol.fastest(_UBATCHES, lambda size: self._score_with(size, 0))
        self._open(self._ubatch)

    def describe(self) -> protocol.Description:
        """The version, the GGUF file's size and the batch."""
        return protocol.Description(
            f"llama.cpp of llama-cpp-python {llama_cpp.__version__}",
            self._size,
            f"prefixes shared, n_ubatch {self._ubatch}",
        )

    def score(self, index: int) -> list[float]:
        """Decode the tree, then log-softmax and sums."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)  # noqa: FBT003
        if llama_cpp.llama_decode(self._context, self._batches[index]):
            raise RuntimeError("llama_decode failed")
        tree = self._trees[index]
        shape = (tree.graph.tokens.size, self._vocab_size)
        address = llama_cpp.llama_get_logits(self._context)
        logits = torch.from_numpy(np.ctypeslib.as_array(address, shape))
        rows, targets = map(torch.from_numpy, (tree.graph.rows, tree.graph.targets))
        log_prob = logits[rows, targets] - logits.logsumexp(1)[rows]
        return tree.scores(log_prob.numpy())

    def _score_with(self, ubatch: int, index: int) -> None:
        if ubatch != self._ubatch:
            self._open(ubatch)
        self.score(index)

    def _open(self, ubatch: int) -> None:
        if self._context is not None:
            llama_cpp.llama_free(self._context)
        nodes = max(tree.graph.tokens.size for tree in self._trees)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = nodes
        params.n_ubatch = min(ubatch, nodes)
        params.n_seq_max = self._num_sequences
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = self._threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp makes no context")
        self._ubatch = ubatch


def _batch(tree: shapes.Tree) -> llama_cpp.llama_batch:
    """Every context as a token that belongs to all hypotheses which pass through it."""
    graph = tree.graph
    sequences: list[list[int]] = [[] for _ in range(graph.tokens.size)]
    for hypothesis, leaf in enumerate(tree.leaf):
        entry = leaf
        while entry >= 0:
            sequences[graph.rows[entry]].append(hypothesis)
            entry = tree.parent[entry]
    batch = llama_cpp.llama_batch_init(len(sequences), 0, len(tree.leaf))
    batch.n_tokens = len(sequences)
    for node, owners in enumerate(sequences):
        batch.token[node] = int(graph.tokens[0, node])
        batch.pos[node] = int(graph.positions[node])
        batch.logits[node] = 1
        batch.n_seq_id[node] = len(owners)
        for place, owner in enumerate(owners):
            batch.seq_id[node][place] = owner
    return batch


def _quantized_file(task: protocol.Task) -> Path:
    """The GGUF file of the variant, made if it is not there."""
    path = Path(task.cache) / f"llama_cpp.{task.variant}.gguf"
    if path.exists():
        return path
    plain = path.with_name(f"{path.name}.float32")
    _write_float32(task, plain)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = _FILE_TYPES[task.variant]
    beside = path.with_name(f"{path.name}.partial")
    if llama_cpp.llama_model_quantize(
        str(plain).encode(), str(beside).encode(), ctypes.byref(params)
    ):
        raise RuntimeError(f"llama.cpp does not quantize to {task.variant}")
    plain.unlink()
    return beside.rename(path)


def _write_float32(task: protocol.Task, path: Path) -> None:
    state = load_file(task.weights)
    vocab_size, dim = state["transformer.wte.weight"].shape
    blocks = itertools.takewhile(
        lambda i: f"transformer.h.{i}.ln_1.weight" in state, itertools.count()
    )
    count = sum(1 for _ in blocks)
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_block_count(count)
    writer.add_context_length(len(state["transformer.wpe.weight"]))
    writer.add_embedding_length(dim)
    writer.add_feed_forward_length(state["transformer.h.0.mlp.c_fc.weight"].shape[1])
    writer.add_head_count(task.heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_file_type(0)
    writer.add_tensor("token_embd.weight", state["transformer.wte.weight"])
    writer.add_tensor("position_embd.weight", state["transformer.wpe.weight"])
    writer.add_tensor("output_norm.weight", state["transformer.ln_f.weight"])
    writer.add_tensor("output_norm.bias", state["transformer.ln_f.bias"])
    for index in range(count):
        for theirs, name in _BLOCK.items():
            for kind in ("weight", "bias"):
                array: NDArray[np.float32] = state[f"transformer.h.{index}.{theirs}.{kind}"]
                # GGUF holds a projection as (out, in), GPT-2's Conv1D as (in, out).
                writer.add_tensor(f"blk.{index}.{name}.{kind}", np.ascontiguousarray(array.T))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    protocol.main(LlamaCpp)
