"""golden.json: texts and the scores the reference backend gave them. Knows no folders.

They are written when a model is packed, and scored again by whatever is going to serve it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from quantized_lm.errors import ArtifactGoldenError, DataError, FormatError
from quantized_lm.models.base import LanguageModel
from quantized_lm.records import build
from quantized_lm.tokenizer import Tokenizer
from quantized_lm.tree import build_tree

GOLDEN_TOLERANCE = 1e-3  # relative, per text: what served scores may differ from the reference
# The same where activations are rounded to int8, which moves each token's score by hundredths of a
# nat: the golden texts of the bundled model by 0.03 % to 0.7 %, the last a single word.
GOLDEN_TOLERANCE_INT8 = 2e-2


@dataclass(frozen=True)
class GoldenText:
    """A text and its log P(tokens, </s>), nats."""

    text: str
    log_prob: float

    def __post_init__(self) -> None:
        """Refuse a score that no model can miss or meet."""
        if not math.isfinite(self.log_prob):
            raise FormatError(f"log_prob is {self.log_prob}; need a finite number")


@dataclass(frozen=True)
class Golden:
    """The content of the file.

    Attributes:
        tolerance: what a score may differ from the text's own, relative; 0 to GOLDEN_TOLERANCE.
        texts: at least one.

    Raises:
        FormatError: it is something else, and would say nothing of a model.
    """

    tolerance: float
    texts: tuple[GoldenText, ...]

    def __post_init__(self) -> None:
        """Refuse a check that everything passes."""
        if not self.texts:
            raise FormatError("there is no golden text; need at least one that fits the model")
        if not 0 <= self.tolerance <= GOLDEN_TOLERANCE:
            raise FormatError(f"tolerance is {self.tolerance}; need 0 to {GOLDEN_TOLERANCE}")


def golden_json(texts: Iterable[str], model: LanguageModel, tokenizer: Tokenizer) -> bytes:
    """The file: scores of the texts that fit the model, one text at a time.

    Args:
        model: of the reference backend.

    Raises:
        FormatError: none fits.
    """
    scored = tuple(
        GoldenText(text, _score_text(model, tokenizer, text))
        for text in texts
        if len(tokenizer.encode(text).ids) < model.max_tokens
    )
    return json.dumps(asdict(Golden(GOLDEN_TOLERANCE, scored)), indent=1).encode()


def read_golden(content: bytes) -> Golden:
    """The reverse of `golden_json`.

    Raises:
        DataError: it is no such file.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"golden.json cannot be read ({error})") from None
    return build(Golden, value, where="golden.json", error=DataError)


def require_golden(
    golden: Golden,
    model: LanguageModel,
    tokenizer: Tokenizer,
    *,
    least_tolerance: float,
    where: str,
) -> None:
    """Pass if the model gives every text its score.

    Args:
        least_tolerance: of what computes. where: names that, and the model.

    Raises:
        ArtifactGoldenError: it does not.
    """
    tolerance = max(golden.tolerance, least_tolerance)
    for entry in golden.texts:
        got = _score_text(model, tokenizer, entry.text)
        if not abs(got - entry.log_prob) <= tolerance * abs(entry.log_prob):
            raise ArtifactGoldenError(
                f"{where}: {entry.text!r} scores {got:.6f}; its golden score is "
                f"{entry.log_prob:.6f}; try --backend reference and report this"
            )


def _score_text(model: LanguageModel, tokenizer: Tokenizer, text: str) -> float:
    tree = build_tree([tokenizer.encode(text).ids])
    (log_prob,) = model.extend([model.new_state()], [tree.parent[1:]], [tree.token[1:]])
    return float(log_prob.astype(np.float64).sum())
