"""The words and letters of the lattices that are made for k2. Imports nothing."""

from __future__ import annotations

_TEXT = """
a an and are at be but can far fare in is it let made no not of on one or red rest sea seat see set
so sun ten the then to too two up was we win
"""
WORDS = _TEXT.split()
SYMBOLS = dict(enumerate(WORDS, start=1))
LETTERS = {letter: index for index, letter in enumerate(sorted(set("".join(WORDS))), start=1)}
