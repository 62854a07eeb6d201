"""Decoders' n-best lists and lattices, rescored by a table's models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantized_lm.combine import Weights, formula
from quantized_lm.dev_set import (
    best_hypothesis,
    default_free,
    reference,
    rounded_weights,
    select_speakers,
    start_values,
    tuning_set,
)
from quantized_lm.errors import DataError, naming
from quantized_lm.lattice.files import lattice_files, read_lattices
from quantized_lm.lattice_scoring import LatticeRequest, arc_weights, score_lattices
from quantized_lm.list_scoring import rescore_utterances
from quantized_lm.nbest import open_replace, read_utterances
from quantized_lm.pipeline.progress import track
from quantized_lm.pipeline.reproduce.models import ModelStage, text_hash
from quantized_lm.pipeline.reproduce.store import FolderOf, Stage
from quantized_lm.pipeline.reproduce.task import LatticeSet, ListSet
from quantized_lm.records import read_record, write_record
from quantized_lm.scored import ScoredUtterance, read_scored
from quantized_lm.tuning import tune
from quantized_lm.wer import oracle

RESCORED = "rescored.jsonl.gz"
_ANSWERS, _PATHS = "answers.json", "paths.json"
_DEV, _TEST = "even", "odd"
_REMEDY = "; delete its folder"


@dataclass(frozen=True)
class Answers:
    """What a model makes of a set of lists.

    Attributes:
        formula: with the tuned weights.
        is_held_out: of each utterance: whether weights were not tuned on it.
        references, answers, first_pass, oracle: a text of each utterance.
    """

    formula: str
    is_held_out: tuple[bool, ...]
    references: tuple[str, ...]
    answers: tuple[str, ...]
    first_pass: tuple[str, ...]
    oracle: tuple[str, ...]


@dataclass(frozen=True)
class BestPaths:
    """What a model makes of a set of lattices.

    Attributes:
        utterances: their ids. texts: of each the best word sequence.
        degraded: how many searches a budget ended.
    """

    utterances: tuple[str, ...]
    texts: tuple[str, ...]
    degraded: int


@dataclass(frozen=True, eq=False)
class SpeechStage(Stage):
    """A decoder's output as it now is.

    Attributes:
        root: folder of speech data; not part of the key.
        files: name of each, and sha256 of its lines.
    """

    root: Path
    files: tuple[tuple[str, str], ...]

    kind = "speech"

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """None."""
        return ()

    @property
    def content(self) -> tuple[object, ...]:
        """The bytes of the files."""
        return (self.files,)

    @property
    def title(self) -> str:
        """For the progress view."""
        return "speech"

    @property
    def paths(self) -> list[Path]:
        """Where the files are."""
        return [self.root / name for name, _ in self.files]

    def run(self, folder: Path, folder_of: FolderOf) -> None:
        """Nothing: the files stay where they are."""

    @classmethod
    def of(cls, root: Path, name: str) -> SpeechStage:
        """A file, or the lattices of a folder.

        Raises:
            DataError: it is missing.
        """
        if not (root / name).exists():
            raise DataError(f"{root / name}: is not there; check --speech")
        found = lattice_files(root / name)
        names = [path.relative_to(root).as_posix() for path in found]
        return cls(root, tuple((one, text_hash(root / one)) for one in names))


@dataclass(frozen=True, eq=False)
class RescoredStage(Stage):
    """A decoder's output as a model ranks it."""

    model: ModelStage
    speech: SpeechStage

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """The model, what holds its corpus, and what it rescores."""
        return tuple(dict.fromkeys((self.model, self.model.float_stage, self.speech)))


@dataclass(frozen=True, eq=False)
class ListsStage(RescoredStage):
    """Lists: weights tuned on half of the speakers, then everybody's answers."""

    lists: ListSet

    kind = "lists"
    version = 2  # symbols that are no words count for nothing

    @property
    def content(self) -> tuple[object, ...]:
        """How they are read and tuned on."""
        return (self.lists.first_pass, self.lists.speaker_of)

    @property
    def title(self) -> str:
        """For the progress view."""
        return f"rescore {self.lists.name}"

    def run(self, folder: Path, folder_of: FolderOf) -> None:
        """Score every list, tune, answer."""
        _write_scored(self, folder / RESCORED, folder_of)
        utterances = list(read_scored(folder / RESCORED))
        weights = tuned_weights(select_speakers(utterances, _DEV, self.lists.speaker_of))
        held_out = {one.id for one in select_speakers(utterances, _TEST, self.lists.speaker_of)}
        write_record(folder / _ANSWERS, _answers(utterances, weights, held_out))


@dataclass(frozen=True, eq=False)
class LatticesStage(RescoredStage):
    """Lattices: the best word sequence of each."""

    lattices: LatticeSet

    kind = "lattices"
    version = 2  # <unk> is the unknown word

    @property
    def content(self) -> tuple[object, ...]:
        """What ranks word sequences."""
        one = self.lattices
        return (one.am_scale, one.graph_scale, one.lm_scale, one.word_bonus)

    @property
    def title(self) -> str:
        """For the progress view."""
        return f"rescore {self.lattices.name}"

    def run(self, folder: Path, folder_of: FolderOf) -> None:
        """Search every lattice."""
        scorer = self.model.load(folder_of)
        one = self.lattices
        counting = arc_weights(
            Weights(
                am_scale=one.am_scale,
                graph_scale=one.graph_scale,
                lm_scales={scorer.name: one.lm_scale},
                word_bonus=one.word_bonus,
            )
        )
        utterances, texts, degraded = [], [], 0
        for path in track(self.speech.paths, f"{scorer.name} on {one.name}"):
            for lattice in read_lattices(path):
                with naming(lattice.utterance):
                    request = LatticeRequest(lattice, counting, one.lm_scale)
                    (found,) = score_lattices([request], scorer)
                utterances.append(lattice.utterance)
                texts.append(found.hypotheses[0].text)
                degraded += bool(found.degraded)
        paths = BestPaths(tuple(utterances), tuple(texts), degraded)
        write_record(folder / _PATHS, paths)


def tuned_weights(utterances: Sequence[ScoredUtterance]) -> Weights:
    """Those with the fewest word errors, of every LM, the decoder's LM and the number of words.

    Raises:
        DataError: references or scores are missing.
    """
    data = tuning_set(utterances)
    result = tune(data, start_values(data.names), default_free(data.names))
    return rounded_weights(data, result)


def read_answers(folder: Path) -> Answers:
    """What a finished `ListsStage` left.

    Raises:
        DataError: it is damaged.
    """
    return read_record(Answers, folder / _ANSWERS, what="answers", remedy=_REMEDY)


def read_paths(folder: Path) -> BestPaths:
    """What a finished `LatticesStage` left.

    Raises:
        DataError: it is damaged.
    """
    return read_record(BestPaths, folder / _PATHS, what="best paths", remedy=_REMEDY)


def _write_scored(stage: ListsStage, target: Path, folder_of: FolderOf) -> None:
    scorer = stage.model.load(folder_of)
    (source,) = stage.speech.paths
    utterances = read_utterances(source, first_pass=stage.lists.first_pass)
    rescored = rescore_utterances(utterances, scorer, Weights())
    with open_replace(target) as handle:
        for record in track(rescored, f"{scorer.name} on {stage.lists.name}"):
            handle.write(json.dumps(record) + "\n")


def _answers(
    utterances: Sequence[ScoredUtterance], weights: Weights, held_out: set[str]
) -> Answers:
    references = [reference(one) for one in utterances]
    texts = [[hypothesis.text for hypothesis in one.hypotheses] for one in utterances]
    best = [best_hypothesis(one, weights) for one in utterances]
    return Answers(
        formula=formula(weights),
        is_held_out=tuple(one.id in held_out for one in utterances),
        references=tuple(references),
        answers=tuple(own[place] for own, place in zip(texts, best, strict=True)),
        first_pass=tuple(own[0] for own in texts),
        oracle=tuple(own[oracle(ref, own)] for ref, own in zip(references, texts, strict=True)),
    )
