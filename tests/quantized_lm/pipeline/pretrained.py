"""A small GPT-2 with random weights, in a folder as the transformers library writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

from quantized_lm.bench.weights import Size, random_gpt2

HEADS = 2
END = "<|endoftext|>"
LINES = ("the cat sat on the mat", "don't the cats sit there", "it's 7 o'clock", "thé à la crème")


def library_tokenizer() -> Tokenizer:
    """Byte-level BPE as GPT-2 has it, its one special symbol last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(LINES * 9, trainer)
    tokenizer.add_special_tokens([END])
    return tokenizer


def end_of(tokenizer: Tokenizer) -> int:
    """The id of its special symbol."""
    number = tokenizer.token_to_id(END)
    assert number is not None
    return number


def write_gpt2_folder(folder: Path, **config: Any) -> dict[str, Tensor]:
    """Write the folder; its weights by the library's names.

    Args:
        config: fields of config.json that are otherwise.
    """
    folder.mkdir()
    tokenizer = library_tokenizer()
    end = end_of(tokenizer)
    # Two rows more than there are tokens, as where an embedding was padded.
    state = random_gpt2(Size(2, 16, HEADS, 32, vocab_size=end + 3))
    save_file(state, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    fields = {"model_type": "gpt2", "n_head": HEADS, "bos_token_id": end, "eos_token_id": end}
    (folder / "config.json").write_text(json.dumps({**fields, **config}))
    return state
