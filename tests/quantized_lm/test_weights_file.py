"""A weights file says what it was given and refuses what it does not know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantized_lm.combine import Weights
from quantized_lm.errors import DataError, InputError
from quantized_lm.weights_file import read_weights, write_weights


def test_weights_read_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "weights.json"
    weights = Weights(
        am_scale=1 / 3,
        lm_scales={"en": 0.1},
        extra={"ctc": -2.0},
        length_norm="gnmt",
        length_offset=2,
    )
    write_weights(path, weights, {"wer_tuned": 0.02})
    assert read_weights(path) == weights
    content = json.loads(path.read_text())
    assert content["report"] == {"wer_tuned": 0.02}
    assert content["formula"].startswith("(0.333")
    assert content["request"]["lms"] == [{"model": "en", "lm_scale": 0.1}]
    assert content["request"]["weights"]["extra"] == {"ctc": -2.0}
    assert "lm_scales" not in content["request"]["weights"]


def test_a_person_may_write_only_what_matters(tmp_path: Path) -> None:
    path = tmp_path / "weights.json"
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_text('{"weights": {"lm_scales": {"en": 1}}}', encoding=encoding)
        assert read_weights(path) == Weights(lm_scales={"en": 1.0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no weights can be read"),
        ("[" * 100_000, "no weights can be read .*recursion"),
        ("[]", "/weights: is no object"),
        ('{"weights": {"lm_scale": 0.5}}', "/weights/lm_scale: is not known; need one of am_scale"),
        ('{"weights": {"am_scale": "1"}}', "/weights/am_scale: is '1'"),
        ('{"weights": {"mode": 1}}', "/weights/mode: is 1"),
        ('{"weights": {"length_offset": 1.5}}', "/length_offset: is 1.5; need a whole number"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "weights.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_weights(path)


def test_unusable_values_are_refused_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "weights.json"
    path.write_text('{"weights": {"mode": "cubic"}}')
    with pytest.raises(InputError, match="/weights/mode: mode is 'cubic'") as caught:
        read_weights(path)
    assert caught.value.pointer == "/weights/mode"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        write_weights(tmp_path / "absent" / "weights.json", Weights(), {})
