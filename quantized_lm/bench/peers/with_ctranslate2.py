"""CTranslate2: its own converter for GPT-2, int8 weights and activations, padded batches."""

from __future__ import annotations

from pathlib import Path

import ctranslate2
from ctranslate2.converters.transformers import GPT2Loader

from . import protocol
from .with_transformers import load_model

_BATCHES = (10, 20, 50, 100)


class Ctranslate2:
    """`Generator.score_batch`, which sorts, pads and sums by itself."""

    def __init__(self, task: protocol.Task) -> None:
        folder = Path(task.cache) / f"ctranslate2.{task.variant}"
        if not folder.is_dir():
            _convert(task, folder)
        self._size = (folder / "model.bin").stat().st_size
        self._generator = ctranslate2.Generator(
            str(folder), compute_type=task.variant, intra_threads=task.threads
        )
        boundary = str(protocol.BOUNDARY_ID)
        self._lists = [
            [[boundary, *map(str, tokens), boundary] for tokens in hypotheses]
            for hypotheses in task.read_lists()
        ]
        self._batch = protocol.fastest(_BATCHES, lambda size: self._score(self._lists[0], size))

    def describe(self) -> protocol.Description:
        """The version, the model file's size and the batch."""
        return protocol.Description(
            f"CTranslate2 {ctranslate2.__version__}",
            self._size,
            f"{self._generator.compute_type}, {self._batch} hypotheses at a time",
        )

    def score(self, index: int) -> list[float]:
        """One call; the tokens are already in the form it takes."""
        return self._score(self._lists[index], self._batch)

    def _score(self, hypotheses: list[list[str]], size: int) -> list[float]:
        results = self._generator.score_batch(hypotheses, max_batch_size=size)
        return [sum(result.log_probs) for result in results]


def _convert(task: protocol.Task, folder: Path) -> None:
    model = load_model(task)
    loader = GPT2Loader()
    spec = loader.get_model_spec(model)
    spec.register_vocabulary([str(token) for token in range(model.config.vocab_size)])
    spec.config.bos_token = spec.config.eos_token = str(protocol.BOUNDARY_ID)
    spec.config.unk_token = "1"  # noqa: S105 - a token of text
    spec.validate()
    spec.optimize(quantization=task.variant)
    folder.mkdir(parents=True)
    spec.save(str(folder))


if __name__ == "__main__":
    protocol.main(Ctranslate2)
