"""Every exception the library raises: what, what was got, and what would be right.

SecondpassError
+-- ShapeError            arrays that must agree do not
+-- InputError            a value given by the caller is unusable; carries a JSON pointer
|   +-- NonFiniteError    NaN or infinity where a score is needed
|   +-- MissingScoreError a weight needs a score that was not given
|   +-- TooLongError      more tokens than the model or the server allows
|   +-- OovError          a word outside the vocabulary where the request forbids one
|   +-- PresetError       unknown preset, or one that lacks what it needs
|   +-- LatticeError      a lattice is malformed; points to its first bad arc or field
|       +-- TooManyArcsError    a lattice has more arcs than are read
|       +-- NoPathError         a lattice is empty, or no path has a finite score
+-- DataError             a file of text or n-best lists cannot be read
+-- RecipeError           a recipe for making a model is wrong
+-- FormatError           codes, scales or shapes do not fit a packed format
+-- BackendError          a GEMM backend is unknown, missing or not usable on this machine
+-- ArtifactError         a packed model folder is refused
    +-- ArtifactVersionError    written by a newer version
    +-- ArtifactIntegrityError  a file is missing, truncated or altered
    +-- ArtifactGoldenError     the loaded model does not reproduce its golden scores
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SecondpassError(Exception):
    """Base of everything this package raises on purpose."""


class ShapeError(SecondpassError):
    """Arrays that must agree in shape or dtype do not."""


class InputError(SecondpassError):
    """A value given by the caller is unusable.

    Attributes:
        pointer: RFC 6901 JSON pointer to the value, relative to the object that was passed
            in ("" when the whole object is meant).
    """

    def __init__(self, message: str, *, pointer: str = "") -> None:
        super().__init__(message)
        self.pointer = pointer


class NonFiniteError(InputError):
    """NaN or infinity where a score is needed."""


class MissingScoreError(InputError):
    """A weight needs a score that was not given."""


class TooLongError(InputError):
    """More tokens than the model or the server allows."""


class OovError(InputError):
    """A word outside the vocabulary where the request forbids one."""


class PresetError(InputError):
    """An unknown preset, or one that lacks what it needs."""


class LatticeError(InputError):
    """A lattice is malformed."""


class TooManyArcsError(LatticeError):
    """A lattice has more arcs than are read."""


class NoPathError(LatticeError):
    """A lattice is empty, as a decoder may leave it, or no path of it has a finite score."""


class DataError(SecondpassError):
    """A file of text or n-best lists cannot be read."""


class RecipeError(SecondpassError):
    """A recipe for making a model is wrong."""


class FormatError(SecondpassError):
    """Codes, scales or shapes do not fit a packed format."""


class BackendError(SecondpassError):
    """A GEMM backend is unknown, missing or not usable on this machine."""


class ArtifactError(SecondpassError):
    """A packed model folder is refused."""


class ArtifactVersionError(ArtifactError):
    """The artifact was written by a newer version."""


class ArtifactIntegrityError(ArtifactError):
    """A file of the artifact is missing, truncated or altered."""


class ArtifactGoldenError(ArtifactError):
    """The loaded model does not reproduce its golden scores."""


def explain(error: SecondpassError) -> str:
    """The message on one line, after the place it is about where it does not say so itself."""
    message = " ".join(str(error).split())
    pointer = error.pointer if isinstance(error, InputError) else ""
    return message if not pointer or pointer in message else f"{pointer}: {message}"


@contextmanager
def naming(utterance: str) -> Iterator[None]:
    """Say in which utterance a fault is.

    Raises:
        DataError: instead of an `InputError`.
    """
    try:
        yield
    except InputError as error:
        raise DataError(f"utterance {utterance!r}: {explain(error)}") from None
