"""Rescored lattices as the wire has them. Computes no score; it only says what was computed."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quantized_lm.errors import InputError
from quantized_lm.lattice.confidence import word_confidences
from quantized_lm.lattice.formats import LatticeFormat
from quantized_lm.lattice.lattice import Lattice
from quantized_lm.lattice_scoring import LatticeHypothesis as Hypothesis
from quantized_lm.lattice_scoring import LatticeScores
from quantized_lm.scored import finite
from service.errors import describe
from service.lattice_schemas import (
    LatticeHypothesis,
    LatticeOptions,
    LatticeResult,
    LatticeUsage,
    LatticeWord,
    RescoredLattice,
)
from service.latticework import CheckedLattice
from service.schemas import FailedUtterance

TIME = "time_s"
KALDI = ("kaldi-text", "kaldi-binary")
UNNAMED = "lattice"


def reply_lattices(
    checked: Sequence[CheckedLattice],
    scores: Sequence[LatticeScores],
    model: str,
    options: LatticeOptions,
) -> list[LatticeResult | FailedUtterance]:
    """The `results` of a reply, in the request's order.

    Args:
        checked: what `prepare_lattices` made of the request.
        scores: of every one that was prepared.
        model: name of the LM.
        options: those of the request.
    """
    in_order = iter(scores)
    return [
        FailedUtterance(id=one.id, error=describe(one.prepared))
        if isinstance(one.prepared, InputError)
        else lattice_result(one, next(in_order), model, options)
        for one in checked
    ]


def lattice_result(
    checked: CheckedLattice, scores: LatticeScores, model: str, options: LatticeOptions
) -> LatticeResult:
    """One lattice's best sequences.

    Raises:
        ValueError: a score is not finite: the model is broken, not the request.
    """
    if not np.isfinite([one.total for one in scores.sequences]).all():
        raise ValueError("a model scored a sequence with NaN or infinity; this is a bug")
    posteriors = scores.posteriors(options.posterior_scale)
    hypotheses = [
        _hypothesis(rank, one, float(posteriors[rank - 1]), model)
        for rank, one in enumerate(scores.hypotheses, start=1)
    ]
    if options.return_words:
        for entry, words in zip(hypotheses, _words(scores, posteriors), strict=True):
            entry["words"] = words
    result: LatticeResult = {
        "id": checked.id,
        "exact": scores.is_exact,
        "degraded": list(scores.degraded),
        "cuts": [cut for cut in scores.cuts if cut not in scores.degraded],
        "hypotheses": hypotheses,
    }
    if options.return_lattice:
        result["lattice"] = rescored_lattice(scores.rescored(), checked.format)
    return result


def rescored_lattice(lattice: Lattice, target: LatticeFormat) -> RescoredLattice:
    """A lattice in the format that came in."""
    if not lattice.utterance and target.name in KALDI:  # a file of its own, without an id
        lattice = replace(lattice, utterance=UNNAMED)
    content = target.write([lattice])
    reply: RescoredLattice = {"format": target.name, "media_type": target.media_type}
    if target.name == "k2-json":
        reply["json"] = json.loads(content)
    elif target.media_type.startswith("text/"):
        reply["text"] = content.decode()
    else:
        reply["base64"] = base64.b64encode(content).decode()
    if lattice.symbols is not None and "symbols" in target.drops([lattice]):
        used = np.unique(lattice.words.values).tolist()
        reply["symbols"] = {str(word): lattice.symbols[word] for word in used}
    return reply


def lattice_usage(scores: Sequence[LatticeScores]) -> LatticeUsage:
    """Work of a whole request."""
    usages = [one.usage for one in scores]
    arcs = sum(usage.arcs for usage in usages)
    words = sum(len(one.hypotheses[0].words) for one in scores if one.hypotheses)
    return {
        "arcs": arcs,
        "states": sum(usage.states for usage in usages),
        "density": arcs / words if words else None,
        "lm_steps": sum(usage.lm_steps for usage in usages),
        "tree_nodes": sum(usage.tree_nodes for usage in usages),
        "cache_hits": sum(usage.cache_hits for usage in usages),
        "waves": sum(usage.waves for usage in usages),
        "sequences": sum(usage.sequences for usage in usages),
    }


def _hypothesis(rank: int, one: Hypothesis, posterior: float, model: str) -> LatticeHypothesis:
    return {
        "rank": rank,
        "text": one.text,
        "score": one.total,
        "posterior": posterior,
        "components": {
            "am": finite(one.am),
            "graph": finite(one.graph),
            "lm": {model: finite(one.lm)},
        },
        "num_words": one.num_words,
        "num_tokens": one.num_tokens,
        "oov": list(one.oov),
    }


def _words(scores: LatticeScores, posteriors: NDArray[np.float64]) -> list[list[LatticeWord]]:
    """The words of every hypothesis."""
    lattice = scores.prepared.request.lattice
    sequences = [scores.search.words(one.prefix) for one in scores.sequences]
    times = lattice.state_attributes.get(TIME)
    listed = []
    for one in scores.hypotheses:
        confidences = word_confidences(one.words, sequences, posteriors)
        lm: Sequence[float | None] = one.word_lm or [None] * len(one.words)
        words: list[LatticeWord] = [
            {"word": word, "lm": log_prob, "confidence": confidence}
            for word, log_prob, confidence in zip(one.words, lm, confidences, strict=True)
        ]
        if times is not None:
            for word, arc in zip(words, one.word_arcs.tolist(), strict=True):
                start, end = float(times[lattice.src[arc]]), float(times[lattice.dst[arc]])
                if math.isfinite(start) and math.isfinite(end):
                    word["start"], word["end"] = start, end
        listed.append(words)
    return listed
