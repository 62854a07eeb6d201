"""What is said of lists whose word errors are counted, but may not be those that are meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from quantized_lm.cli.console import note
from quantized_lm.dev_set import reference
from quantized_lm.scored import ScoredUtterance
from quantized_lm.wer import spelling_remark


def note_doubts(source: Path, utterances: Sequence[ScoredUtterance]) -> None:
    """Warn of ids that stand twice, and of references written otherwise than the texts.

    Raises:
        DataError: an utterance has no reference.
    """
    counts = Counter(utterance.id for utterance in utterances)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        note(
            f"warning: {source}: {len(twice)} utterance ids are there more than once, such as "
            f"{twice[0]!r}; each line counts"
        )
    remark = spelling_remark(
        [reference(utterance) for utterance in utterances],
        [utterance.hypotheses[0].text for utterance in utterances],
    )
    if remark:
        note(f"warning: {source}: {remark}")
