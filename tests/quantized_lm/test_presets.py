"""Each preset against its toolkit's own arithmetic, written out with numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantized_lm.combine import combine
from quantized_lm.components import Components
from quantized_lm.errors import PresetError
from quantized_lm.presets import PRESETS, preset_weights

AM, GRAPH, LM = [-41.5, -40.25], [-17.5, -19.0], [-30.0, -33.0]
LODR, OLD, CTC, NGRAM = [-12.0, -11.0], [-16.0, -18.5], [-39.0, -38.0], [-25.0, -26.0]
WORDS, TOKENS, CHARS, UNKNOWN = [4, 3], [9, 7], [21, 17], [1.0, 0.0]


def totals(name: str, **parameters: float) -> list[float]:
    components = Components(
        am=np.array(AM),
        graph=np.array(GRAPH),
        lm={"en": np.array(LM)},
        extra={
            "lodr": np.array(LODR),
            "old_lm": np.array(OLD),
            "ctc": np.array(CTC),
            "ngram": np.array(NGRAM),
            "oov_words": np.array(UNKNOWN),
        },
        words=np.array(WORDS),
        tokens=np.array(TOKENS),
        chars=np.array(CHARS),
    )
    total = combine(components, preset_weights(name, parameters, lm="en")).total
    return [float(value) for value in total]


def test_icefall_divides_the_first_pass_and_subtracts_lodr() -> None:
    assert totals("icefall", lm_scale=0.25) == [-41.5 / 0.25 - 30.0, -40.25 / 0.25 - 33.0]
    with_lodr = totals("icefall", lm_scale=0.5, lodr_scale=0.1)
    assert with_lodr == pytest.approx([-83.0 - 30.0 + 1.2, -80.5 - 33.0 + 1.1])


def test_icefall_beam_scales_the_lm() -> None:
    assert totals("icefall-beam", lm_scale=0.25) == [-41.5 - 7.5, -40.25 - 8.25]


def test_both_icefall_rules_rank_alike() -> None:
    one, other = totals("icefall", lm_scale=0.3), totals("icefall-beam", lm_scale=0.3)
    assert np.array(one) * 0.3 == pytest.approx(np.array(other))


def test_kaldi_replaces_a_share_of_the_old_lm() -> None:
    # lattice-lmrescore adds weight*(new - old) to the graph score, lattice-best-path scales the
    # acoustics, lattice-add-penalty takes the penalty off once a word.
    expected = [
        0.1 * am + graph + 0.8 * (new - old) - 0.5 * words
        for am, graph, new, old, words in zip(AM, GRAPH, LM, OLD, WORDS, strict=True)
    ]
    assert totals("kaldi", weight=0.8, word_ins_penalty=0.5) == pytest.approx(expected)


def test_nemo_adds_beta_per_character_with_spaces() -> None:
    assert totals("nemo", alpha=0.5, beta=0.1) == pytest.approx(
        [-41.5 - 15.0 + 2.1, -40.25 - 16.5 + 1.7]
    )


def test_pyctcdecode_scores_words_in_log10() -> None:
    alpha, beta, offset = 0.5, 1.5, -10.0
    expected = []
    for am, log_prob, words, unknown in zip(AM, LM, WORDS, UNKNOWN, strict=True):
        log10 = log_prob / math.log(10.0) + offset * unknown
        expected.append(am + alpha * log10 / math.log10(math.e) + beta * words)
    assert totals("pyctcdecode", unk_score_offset=offset) == pytest.approx(expected)


def test_espnet_interpolates_decoder_and_ctc() -> None:
    expected = [
        0.7 * am + 0.3 * ctc + 1.0 * log_prob + 0.9 * ngram + 0.2 * tokens
        for am, ctc, log_prob, ngram, tokens in zip(AM, CTC, LM, NGRAM, TOKENS, strict=True)
    ]
    got = totals("espnet", ctc_weight=0.3, ngram_weight=0.9, penalty=0.2)
    assert got == pytest.approx(expected)


def test_sherpa_onnx_divides_by_a_length_that_counts_leading_blanks() -> None:
    expected = [
        (am + 0.5 * log_prob + 0.5 * -0.4 * lodr) / (tokens + 2)
        for am, log_prob, lodr, tokens in zip(AM, LM, LODR, TOKENS, strict=True)
    ]
    assert totals("sherpa-onnx", lodr_scale=-0.4) == pytest.approx(expected)


def test_defaults_need_no_score_that_only_an_option_uses() -> None:
    assert preset_weights("sherpa-onnx", {}, lm="en").extra == {}
    assert preset_weights("pyctcdecode", {}, lm="en").extra == {}
    assert preset_weights("icefall", {"lm_scale": 0.5}, lm="en").extra == {}


@pytest.mark.parametrize(
    ("name", "parameters", "pointer"),
    [
        ("whisper", {}, "/preset"),
        ("nemo", {"alpha": 0.5}, "/beta"),
        ("nemo", {"alpha": 0.5, "beta": 0.0, "gamma": 1.0}, "/gamma"),
        ("nemo", {"alpha": math.nan, "beta": 0.0}, "/alpha"),
        ("icefall", {"lm_scale": 0.0}, "/lm_scale"),
        ("sherpa-onnx", {"context_size": 1.5}, "/context_size"),
    ],
)
def test_unusable_presets_are_refused(
    name: str, parameters: dict[str, float], pointer: str
) -> None:
    with pytest.raises(PresetError) as caught:
        preset_weights(name, parameters, lm="en")
    assert caught.value.pointer == pointer


def test_every_preset_says_its_rule_and_source() -> None:
    assert list(PRESETS) == [
        "icefall",
        "icefall-beam",
        "kaldi",
        "nemo",
        "pyctcdecode",
        "espnet",
        "sherpa-onnx",
    ]
    assert all(preset.rule and preset.source for preset in PRESETS.values())
