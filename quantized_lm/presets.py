"""Other toolkits' score conventions as `Weights`, under those toolkits' own parameter names.

A preset changes scales and signs, never scores. Where a toolkit subtracts a second LM, its score
comes from the client as an `extra`: "lodr" (internal LM or bigram) or "old_lm" (first-pass LM).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quantized_lm.combine import Weights
from quantized_lm.components import escape
from quantized_lm.errors import PresetError

Parameters = Mapping[str, float]


@dataclass(frozen=True)
class Preset:
    """One toolkit's rule.

    Attributes:
        rule: the toolkit's formula; A first-pass or acoustic, G graph, L new LM, natural logs.
        source: the file of the toolkit that computes it.
        defaults: parameter name -> the toolkit's default; None where it has to be given.
        build: (all parameters, LM name) -> Weights.
    """

    rule: str
    source: str
    defaults: Mapping[str, float | None]
    build: Callable[[Parameters, str], Weights]


def preset_weights(name: str, parameters: Parameters, *, lm: str) -> Weights:
    """Weights that rank as the toolkit `name` does with these parameters.

    Args:
        name: a key of `PRESETS`.
        parameters: the toolkit's parameter names; those left out take the toolkit's defaults.
        lm: name of the LM whose score is L.

    Raises:
        PresetError: unknown preset or parameter, one that has to be given is missing, or a value
            is not usable. The pointer is "/preset" or "/PARAMETER".
    """
    if name not in PRESETS:
        known = ", ".join(PRESETS)
        raise PresetError(f"preset is {name!r}; need one of {known}", pointer="/preset")
    preset = PRESETS[name]
    known = ", ".join(preset.defaults)
    for parameter, value in parameters.items():
        pointer = f"/{escape(parameter)}"
        if parameter not in preset.defaults:
            raise PresetError(
                f"preset {name!r} got parameter {parameter!r}; it has {known}", pointer=pointer
            )
        if not math.isfinite(value):
            raise PresetError(f"{parameter} is {value}; need a finite number", pointer=pointer)
    values: dict[str, float] = {}
    for parameter, default in preset.defaults.items():
        given = parameters.get(parameter, default)
        if given is None:
            raise PresetError(
                f"preset {name!r} got no {parameter!r}, which has no default; give {known}",
                pointer=f"/{parameter}",
            )
        values[parameter] = given
    return preset.build(values, lm)


def _icefall(values: Parameters, lm: str) -> Weights:
    if values["lm_scale"] <= 0.0:
        raise PresetError(
            f"lm_scale is {values['lm_scale']}; preset 'icefall' divides by it, need more than 0",
            pointer="/lm_scale",
        )
    return Weights(
        am_scale=1.0 / values["lm_scale"],
        lm_scales={lm: 1.0},
        extra=_used(lodr=-values["lodr_scale"]),
    )


def _icefall_beam(values: Parameters, lm: str) -> Weights:
    return Weights(lm_scales={lm: values["lm_scale"]})


def _kaldi(values: Parameters, lm: str) -> Weights:
    weight = values["weight"]
    return Weights(
        am_scale=values["acoustic_scale"],
        graph_scale=1.0,
        lm_scales={lm: weight},
        extra=_used(old_lm=-weight),
        word_bonus=-values["word_ins_penalty"],
    )


def _nemo(values: Parameters, lm: str) -> Weights:
    return Weights(lm_scales={lm: values["alpha"]}, char_bonus=values["beta"])


def _pyctcdecode(values: Parameters, lm: str) -> Weights:
    # The offset is in log10, as KenLM's scores are; it is added once per unknown word.
    penalty = values["alpha"] * values["unk_score_offset"] * math.log(10.0)
    return Weights(
        lm_scales={lm: values["alpha"]},
        word_bonus=values["beta"],
        extra=_used(oov_words=penalty),
    )


def _espnet(values: Parameters, lm: str) -> Weights:
    return Weights(
        am_scale=1.0 - values["ctc_weight"],
        lm_scales={lm: values["lm_weight"]},
        extra=_used(ctc=values["ctc_weight"], ngram=values["ngram_weight"]),
        token_bonus=values["penalty"],
    )


def _sherpa_onnx(values: Parameters, lm: str) -> Weights:
    offset = values["context_size"]
    if offset != int(offset) or offset < 0:
        raise PresetError(
            f"context_size is {offset}; need a whole number of 0 or more", pointer="/context_size"
        )
    return Weights(
        lm_scales={lm: values["lm_scale"]},
        extra=_used(lodr=values["lm_scale"] * values["lodr_scale"]),
        length_norm="tokens",
        length_offset=int(offset),
    )


def _used(**scales: float) -> dict[str, float]:
    """Only the extras that count, so that a client need not send the others."""
    return {name: scale for name, scale in scales.items() if scale != 0.0}


PRESETS: Mapping[str, Preset] = {
    "icefall": Preset(
        rule="A/lm_scale + L - lodr_scale*lodr",
        source="icefall/decode.py: rescore_with_n_best_list, nbest_rescore_with_LM",
        defaults={"lm_scale": None, "lodr_scale": 0.0},
        build=_icefall,
    ),
    "icefall-beam": Preset(
        rule="A + lm_scale*L",
        source="icefall pruned_transducer_stateless2/beam_search.py: "
        "modified_beam_search_lm_rescore",
        defaults={"lm_scale": None},
        build=_icefall_beam,
    ),
    "kaldi": Preset(
        rule="acoustic_scale*A + G + weight*(L - old_lm) - word_ins_penalty*words",
        source="kaldi scripts/rnnlm/lmrescore_pruned.sh, steps/score_kaldi.sh",
        defaults={"weight": 0.5, "acoustic_scale": 0.1, "word_ins_penalty": 0.0},
        build=_kaldi,
    ),
    "nemo": Preset(
        rule="A + alpha*L + beta*characters (spaces count)",
        source="NeMo scripts/asr_language_modeling/neural_rescorer/eval_neural_rescorer.py",
        defaults={"alpha": None, "beta": None},
        build=_nemo,
    ),
    # unk_score_offset is -10 in pyctcdecode, where every word the n-gram lacks is unknown. Ours
    # is a subword LM that scores such words, so the offset is 0 unless asked for.
    "pyctcdecode": Preset(
        rule="A + sum over words of alpha*(log10 P + unk_score_offset*unknown)*ln(10) + beta",
        source="pyctcdecode/language_model.py: LanguageModel.score",
        defaults={"alpha": 0.5, "beta": 1.5, "unk_score_offset": 0.0},
        build=_pyctcdecode,
    ),
    "espnet": Preset(
        rule="(1-ctc_weight)*A + ctc_weight*ctc + lm_weight*L + ngram_weight*ngram"
        " + penalty*tokens",
        source="espnet2/bin/asr_inference.py",
        defaults={"ctc_weight": 0.5, "lm_weight": 1.0, "ngram_weight": 0.0, "penalty": 0.0},
        build=_espnet,
    ),
    # lodr_scale is 0.01 in sherpa-onnx, where it counts only if a LODR FST is given: by default
    # none is. The length is that of the LM's tokens plus the leading blanks of the transducer.
    "sherpa-onnx": Preset(
        rule="(A + lm_scale*L + lm_scale*lodr_scale*lodr) / (tokens + context_size)",
        source="sherpa-onnx/csrc/offline-lm.cc, hypothesis.h",
        defaults={"lm_scale": 0.5, "lodr_scale": 0.0, "context_size": 2.0},
        build=_sherpa_onnx,
    ),
}
