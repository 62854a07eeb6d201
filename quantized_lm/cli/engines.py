"""Where `secondpass rescore` runs the model: a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from quantized_lm.artifact import LoadedModel
from quantized_lm.cli.corpus import Corpus
from quantized_lm.combine import Weights
from quantized_lm.errors import DataError
from quantized_lm.list_scoring import Json, rescore_utterances
from quantized_lm.nbest import read_utterances
from quantized_lm.ops import AUTO

Engine = Callable[[Corpus, LoadedModel, Weights], Iterable[Json]]


def engine_by_name(name: str, device: str) -> Engine:
    """What turns a corpus into result lines, in order.

    Args:
        device: where the model shall run; workers on a cluster have a CPU each and nothing else.

    Raises:
        DataError: there is none of that name, or not for that device.
    """
    if name not in ENGINES:
        raise DataError(f"--engine is {name!r}; need one of {', '.join(ENGINES)}")
    if name != LOCAL and device not in (AUTO, "cpu"):
        raise DataError(f"got --engine {name}, which has CPUs, and --device {device}; give one")
    return ENGINES[name]


def _local(corpus: Corpus, loaded: LoadedModel, weights: Weights) -> Iterable[Json]:
    utterances = read_utterances(corpus.source, first_pass=corpus.first_pass)
    return rescore_utterances(utterances, loaded, weights, keeps_failed=corpus.keeps_failed)


def _ray(corpus: Corpus, _: LoadedModel, weights: Weights) -> Iterable[Json]:
    try:
        from quantized_lm.cli.ray_engine import rescore_corpus  # noqa: PLC0415 - only some have Ray
    except ImportError as error:
        raise DataError(f"--engine ray: {error}; need the extra secondpass[ray]") from None
    return rescore_corpus(corpus, weights)


LOCAL = "local"
ENGINES: Mapping[str, Engine] = MappingProxyType({LOCAL: _local, "ray": _ray})
