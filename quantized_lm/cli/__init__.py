"""The offline commands of `secondpass`, one file each.

`COMMANDS` is all that the entry point reads: it knows neither options nor what a command does, and
imports none that is not called (`lazy.py`).
"""

from __future__ import annotations

# Name of a command and of its file, which has it as `run`; what the list of commands says of it.
COMMANDS: tuple[tuple[str, str], ...] = (
    ("rescore", "Score and rank n-best lists and lattices with the LM."),
    ("tune", "Find the weights with the fewest word errors."),
    ("evaluate", "Word error rates and their significance."),
    ("compare", "Set lattices against n-best lists."),
    ("score", "Log-probability and perplexity of texts."),
    ("inspect", "Show what a model or a lattice holds."),
    ("convert", "Convert lattices between formats."),
    ("pack", "Pack a pretrained GPT-2 as a folder to serve."),
    ("train", "Train a float LM from text."),
    ("sensitivity", "Measure what rounding each matrix costs."),
    ("allocate", "Choose bits for each matrix within a budget."),
    ("quantize", "Distill a float LM into packed weights."),
    ("export", "Write a trained model as a folder to serve."),
    ("perplexity", "What quantization cost, on held-out text."),
    ("reproduce", "Make a table of models from recipes."),
    ("bench", "Time kernels and lists beside other systems."),
)
