"""The lattice formats by name. None needs a decoder's library or torch.

What each holds of the scores: k2-json, k2-safetensors and k2-pt float32 am + graph and float32
graph; k2-text float32 am + graph; kaldi-binary float32 am and graph; kaldi-text and htk am and
graph bit for bit; openfst-text am + graph. All keep -infinity. Text has the fewest digits that lose
nothing. Costs have no sign of zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from types import MappingProxyType

from quantized_lm.errors import LatticeError
from quantized_lm.lattice.formats import (
    htk,
    htk_write,
    k2_json,
    k2_pt,
    k2_safetensors,
    k2_text,
    kaldi,
    openfst_text,
)
from quantized_lm.lattice.formats.base import LatticeFormat, ReadOptions

__all__ = [
    "LATTICE_FORMATS",
    "LatticeFormat",
    "ReadOptions",
    "format_by_name",
    "format_of_media_type",
    "format_of_path",
]

_KALDI_FILES = ("lat.*", "*.lat*", "*.gz", "*.ark")  # beside num_jobs, logs and scores
_ALL = (
    LatticeFormat(
        "k2-json",
        "application/json",
        (".k2.json",),
        holds_many=True,
        read=k2_json.read,
        write=k2_json.write,
        drops=k2_json.drops,
    ),
    LatticeFormat(
        "k2-safetensors",
        "application/vnd.secondpass.k2+safetensors",
        (".safetensors",),
        holds_many=True,
        read=k2_safetensors.read,
        write=k2_safetensors.write,
        drops=k2_safetensors.drops,
    ),
    LatticeFormat(
        "k2-pt",
        "application/vnd.k2.fsa+pt",
        (".pt",),
        holds_many=True,
        read=k2_pt.read,
        write=k2_pt.write,
        drops=k2_pt.drops,
    ),
    LatticeFormat(
        "k2-text",
        "text/x-k2",
        (".k2.txt",),
        holds_many=False,
        read=k2_text.read,
        write=k2_text.write,
        drops=k2_text.drops,
    ),
    LatticeFormat(
        "kaldi-text",
        "text/x-kaldi-lattice",
        (".lat.txt",),
        holds_many=True,
        read=kaldi.read_archive,
        write=kaldi.write_text,
        drops=kaldi.drops,
        patterns=_KALDI_FILES,
    ),
    LatticeFormat(
        "kaldi-binary",
        "application/x-kaldi-lattice",
        (".ark",),
        holds_many=True,
        read=kaldi.read_archive,
        write=kaldi.write_binary,
        drops=kaldi.drops,
        patterns=_KALDI_FILES,
    ),
    LatticeFormat(
        "htk",
        "text/x-htk-slf",
        (".slf", ".lat", ".htk"),
        holds_many=False,
        read=htk.read,
        write=htk_write.write,
        drops=htk_write.drops,
    ),
    LatticeFormat(
        "openfst-text",
        "text/x-openfst",
        (".fst.txt",),
        holds_many=False,
        read=openfst_text.read,
        write=openfst_text.write,
        drops=openfst_text.drops,
    ),
)
LATTICE_FORMATS: Mapping[str, LatticeFormat] = MappingProxyType({one.name: one for one in _ALL})


def format_by_name(name: str) -> LatticeFormat:
    """The format of this name.

    Raises:
        LatticeError: there is none; lists those there are.
    """
    if name not in LATTICE_FORMATS:
        known = ", ".join(LATTICE_FORMATS)
        raise LatticeError(f"lattice format is {name!r}; need one of {known}")
    return LATTICE_FORMATS[name]


def format_of_path(path: PurePath) -> LatticeFormat:
    """The format that a file's name ends in, before a ".gz".

    Raises:
        LatticeError: none; lists the suffixes there are.
    """
    name = path.name.lower().removesuffix(".gz")
    for one in _ALL:
        if name.endswith(one.suffixes):
            return one
    known = ", ".join(suffix for one in _ALL for suffix in one.suffixes)
    raise LatticeError(f"{path.name}: no lattice format ends so; need {known}, or its name")


def format_of_media_type(value: str) -> LatticeFormat:
    """The format of a Content-Type; parameters behind a semicolon do not matter.

    Raises:
        LatticeError: none; lists the media types there are.
    """
    media_type = value.partition(";")[0].strip().lower()
    for one in _ALL:
        if one.media_type == media_type:
            return one
    known = ", ".join(one.media_type for one in _ALL)
    raise LatticeError(f"media type is {value[:80]!r}; need one of {known}")
