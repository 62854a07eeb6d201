"""What is said of lists whose word errors are counted, but may not be those that are meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import chain
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


def note_shared(sets: Sequence[Collection[tuple[str, str | None]]]) -> None:
    """Warn of utterances that several sets hold: together they count as other people's words.

    Args:
        sets: id and reference of each utterance, each once.
    """
    counts = Counter(chain.from_iterable(sets))
    shared = [name for (name, _), count in counts.items() if count > 1]
    if shared:
        note(
            f"warning: {len(shared)} utterances are in more than one of the sets, such as "
            f"{shared[0]!r}; 'all' takes them for independent, so that its p and interval promise "
            "too much; --against compares two rescorings of the same lists"
        )
