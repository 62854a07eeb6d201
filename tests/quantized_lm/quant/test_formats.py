"""Claims about the table of formats."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantized_lm.errors import FormatError
from quantized_lm.quant.activations import ACTIVATION_RULES
from quantized_lm.quant.formats import FORMATS, Grid, get_format


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_fits_a_byte_and_names_itself(name: str) -> None:
    row_format = FORMATS[name]
    assert row_format.name == name
    assert row_format.num_levels**row_format.codes_per_byte <= 256
    assert row_format.stored_bits >= math.log2(row_format.num_levels)


@pytest.mark.parametrize("name", FORMATS)
def test_level_tables_are_int8_and_ascending(name: str) -> None:
    assert len(FORMATS[name].levels) == FORMATS[name].num_levels  # the default uses every code
    for levels in FORMATS[name].level_tables.values():
        assert len(levels) <= FORMATS[name].num_levels
        assert list(levels) == sorted(set(levels))
        assert levels[0] >= -128
        assert levels[-1] <= 127


def test_words_hold_as_many_codes_as_promised() -> None:
    widths = {name: row_format.codes_per_word for name, row_format in FORMATS.items()}
    assert widths == {"1bit": 32, "ternary": 20, "2bit": 16, "4bit": 8, "8bit": 4}
    assert FORMATS["ternary"].stored_bits == 1.6
    assert FORMATS["ternary"].words_per_row(21) == 2


def test_activations_suit_the_kernel_of_the_format() -> None:
    rules = {name: row_format.activation_rule for name, row_format in FORMATS.items()}
    assert set(rules.values()) == set(ACTIVATION_RULES)
    # Formats of few levels multiply by looking up sums of four activations.
    assert [name for name, rule in rules.items() if rule == "quads"] == ["1bit", "ternary", "2bit"]


def test_normal_levels_are_the_gaussian_optimum() -> None:
    levels = np.array(FORMATS["4bit"].level_tables["normal"], float)
    # Lloyd's condition: each level is the mean of a Gaussian between the midpoints around it.
    unit = 127 / 2.73259
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2 / unit, [np.inf]])
    cumulative = np.array([0.5 * (1 + math.erf(edge / math.sqrt(2))) for edge in edges])
    density = np.exp(-(edges**2) / 2) / math.sqrt(2 * math.pi)
    centroids = (density[:-1] - density[1:]) / np.diff(cumulative)
    np.testing.assert_allclose(levels / unit, centroids, atol=0.5 / unit)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(FormatError, match="known are 1bit, ternary"):
        get_format("3bit")
    with pytest.raises(FormatError, match="known are uniform, normal"):
        Grid.named("4bit", "nf4")


def test_a_named_grid_takes_the_first_table_by_default() -> None:
    assert Grid.named("2bit").levels == (-3, -1, 1, 3)
    assert Grid.named("4bit", "normal", 64).group_size == 64
    assert Grid.named("4bit", "normal").levels[0] == -127


def test_a_choice_is_a_format_and_perhaps_a_table() -> None:
    assert Grid.parse("2bit") == Grid.named("2bit")
    assert Grid.parse("4bit:quinary").levels == (-2, -1, 0, 1, 2)
    with pytest.raises(FormatError, match="known are balanced, threelevel"):
        Grid.parse("2bit:quinary")


def test_powers_are_zero_and_powers_of_two() -> None:
    levels = FORMATS["4bit"].level_tables["powers"]
    assert {abs(level) for level in levels} == {0} | {2**power for power in range(7)}
