"""`secondpass rescore` on lattices: their best sequences as lists with every score."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from quantized_lm.artifact import LoadedModel
from quantized_lm.cli.console import note
from quantized_lm.cli.convert import folder_files, write_folder
from quantized_lm.combine import Weights
from quantized_lm.components import escape
from quantized_lm.errors import DataError, InputError, NoPathError, naming
from quantized_lm.files import folder_beside, naming_file, require_replaceable
from quantized_lm.lattice.files import lattice_files, names_lattice, read_lattices
from quantized_lm.lattice.formats import (
    LatticeFormat,
    ReadOptions,
    format_by_name,
    format_of_path,
)
from quantized_lm.lattice.lattice import Lattice
from quantized_lm.lattice.limits import SearchLimits
from quantized_lm.lattice_scoring import (
    LatticeRequest,
    LatticeScores,
    PreparedLattice,
    arc_weights,
    prepare_lattice,
)
from quantized_lm.nbest import Hypothesis, Utterance
from quantized_lm.scored import finite, unranked_record
from quantized_lm.waves import run_all

_REMEDY = "--on-error first-pass writes an empty text for it"
_BATCH_LATTICES = 8  # what shares forward passes


@dataclass(frozen=True)
class LatticeSource:
    """Where lattices are, and how they are read.

    Attributes:
        path: a file, an archive or a folder.
        given: the format of every file; None: the one its name ends in.
        references: what was said, by utterance id; None: not known of any.
        keeps_failed: an utterance whose lattice has no path gets an empty text instead of ending
            all.
    """

    path: Path
    given: LatticeFormat | None = None
    reading: ReadOptions = field(default_factory=ReadOptions)
    references: Mapping[str, str] | None = None
    keeps_failed: bool = False

    def read(self) -> Iterator[tuple[LatticeFormat, Lattice]]:
        """All lattices in order, a file at a time.

        Raises:
            DataError: a file cannot be read, the folder has no lattice, or the references lack one.
            LatticeError: a lattice is malformed.
        """
        for path in lattice_files(self.path, given=self.given):
            one = self.given or format_of_path(path)
            for lattice in read_lattices(path, self.reading, source=one):
                if self.references is not None and lattice.utterance not in self.references:
                    raise DataError(
                        f"{path}: utterance {lattice.utterance!r} has no reference; need one of "
                        "each, or none at all"
                    )
                yield one, lattice


@dataclass
class RescoredFolder:
    """Collects rescored lattices by format, and writes them once all are there.

    Attributes:
        path: the folder; None where none is wanted.
        read: files that are read, and would be lost if a lattice had the name of one.
    """

    path: Path | None
    read: Sequence[Path | None] = ()
    lattices: dict[str, tuple[LatticeFormat, list[Lattice]]] = field(default_factory=dict)

    def require_names(self, utterances: Mapping[str, Sequence[str]]) -> None:
        """Pass if the folder can be written and has a file for each id, by format.

        Raises:
            DataError: it cannot.
        """
        if self.path is None:
            return
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise DataError(f"{self.path}: is a file; need a folder for rescored lattices")
        if not self.path.parent.is_dir():
            raise DataError(f"{self.path}: cannot be written ({self.path.parent} is no folder)")
        with naming_file(self.path), folder_beside(self.path):
            pass
        for name, ids in utterances.items():
            require_replaceable(folder_files(self.path, ids, format_by_name(name)), self.read)

    def add(self, target: LatticeFormat, scores: LatticeScores) -> None:
        """Take one up."""
        if self.path is not None:
            _, rescored = self.lattices.setdefault(target.name, (target, []))
            rescored.append(scores.rescored())

    def write(self) -> None:
        """A file for each lattice, in the format that it came in.

        Raises:
            DataError: as `require_names`, or the disk is full.
        """
        if self.path is None:
            return
        for target, rescored in self.lattices.values():
            write_folder(self.path, rescored, target)
            dropped = target.drops(rescored)
            if dropped:
                note(f"{target.name} does not hold, and so was left out: {', '.join(dropped)}")


def is_lattices(source: Path) -> bool:
    """Whether the input of `rescore` is lattices by its name, or a folder."""
    return source.is_dir() or names_lattice(source)


def rescore_lattices(
    source: LatticeSource,
    loaded: LoadedModel,
    weights: Weights,
    limits: SearchLimits,
    folder: RescoredFolder,
) -> Iterator[dict[str, object]]:
    """Result lines of all lattices in order, several in one forward pass.

    Raises:
        DataError: a lattice cannot be rescored; the message names the utterance.
        InputError: a weight is set that a lattice has no use for, or of another LM.
    """
    counting, lm_scale = arc_weights(weights), _lm_scale(weights, loaded.name)
    lattices = source.read()
    while batch := list(islice(lattices, _BATCH_LATTICES)):
        requests = [LatticeRequest(one, counting, lm_scale, limits) for _, one in batch]
        prepared = [_prepared(one, loaded, keeps_failed=source.keeps_failed) for one in requests]
        usable = [one for one in prepared if isinstance(one, PreparedLattice)]
        scored = iter(run_all(usable, loaded.model))
        for (target, lattice), one in zip(batch, prepared, strict=True):
            if isinstance(one, NoPathError):
                nothing = Utterance(lattice.utterance, (Hypothesis(""),))
                record = unranked_record(nothing, f"utterance {lattice.utterance!r}: {one}")
            else:
                scores = next(scored)
                folder.add(target, scores)
                record = lattice_record(lattice.utterance, scores, loaded.name)
            if source.references is not None:
                record["ref"] = source.references[lattice.utterance]
            yield record


def lattice_record(utterance: str, scores: LatticeScores, model: str) -> dict[str, object]:
    """One line, as `rescore` writes it of a list, where the lattice alone is the first pass.

    `input_rank` is by the lattice's scores and the bonuses, without the LM. The best by these is
    always there, after those wanted if it is none of them: so what `evaluate` takes for the first
    pass does not depend on how many were wanted. A score that JSON has no number for becomes null.
    """
    first = scores.first_pass
    hypotheses = list(enumerate(scores.hypotheses))
    if first >= len(hypotheses):
        hypotheses.append((first, scores.detail(scores.sequences[first])))
    own = [np.inf if at == first else scores.by_lattice[at] for at, _ in hypotheses]
    input_ranks = np.argsort(np.argsort(-np.array(own), kind="stable")) + 1
    posteriors = scores.posteriors()
    entries = [
        {
            "rank": position + 1,
            "input_rank": int(input_rank),
            "text": one.text,
            "score": one.total,
            "posterior": float(posteriors[position]),
            "components": {
                "am": finite(one.am),
                "graph": finite(one.graph),
                "lm": {model: one.lm} if scores.is_scored else {},
                "extra": {},
            },
            "num_words": one.num_words,
            "num_tokens": one.num_tokens,
            "num_chars": len(one.text),
            "oov": list(one.oov),
        }
        for input_rank, (position, one) in zip(input_ranks, hypotheses, strict=True)
    ]
    return {
        "id": utterance,
        "changed": first != 0,
        "degraded": list(scores.degraded),
        "exact": scores.is_exact,
        "hypotheses": entries,
    }


def count_lattices(source: LatticeSource, folder: RescoredFolder) -> int:
    """How many there are; all of them are read, so that a fault is found before the work.

    Raises:
        DataError, LatticeError: as `LatticeSource.read` and `RescoredFolder.require_names`; or a
            word or id is no Unicode, or a lattice is empty and may not be.
    """
    ids: dict[str, list[str]] = {}
    symbols = None
    empty = 0
    for one, lattice in source.read():
        _require_unicode(lattice.utterance, "utterance id")
        if not lattice.num_arcs:
            empty += 1
            if not source.keeps_failed:
                raise DataError(f"utterance {lattice.utterance!r}: the lattice is empty; {_REMEDY}")
            continue
        ids.setdefault(one.name, []).append(lattice.utterance)
        if lattice.symbols is not None and lattice.symbols is not symbols:  # often one for all
            symbols = lattice.symbols
            for word in symbols.values():
                _require_unicode(word, f"utterance {lattice.utterance!r}: word")
    folder.require_names(ids)
    return sum(map(len, ids.values())) + empty


def _require_unicode(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{what} is {text!a}, which has half a surrogate; need Unicode") from None


def _lm_scale(weights: Weights, lm: str) -> float:
    """Of the LM that is loaded; 0 where the weights do not name it."""
    for name, scale in weights.lm_scales.items():
        if name != lm and scale != 0.0:
            raise InputError(
                f"weight of LM {name!r} is {scale:g}; need 0, as only {lm!r} is loaded",
                pointer=f"/lm_scales/{escape(name)}",
            )
    return weights.lm_scales.get(lm, 0.0)


def _prepared(
    request: LatticeRequest, loaded: LoadedModel, *, keeps_failed: bool
) -> PreparedLattice | NoPathError:
    """A lattice ready for the model, or, where that may be, why it has no path."""
    with naming(request.lattice.utterance):
        try:
            return prepare_lattice(request, loaded)
        except NoPathError as error:
            if keeps_failed:
                return error
            raise NoPathError(f"{error}; {_REMEDY}") from None
