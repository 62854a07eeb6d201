"""Claims about taking a GPT-2 from a folder of the transformers library."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quantized_lm.errors import DataError
from quantized_lm.pipeline.byte_level import read_byte_level
from quantized_lm.pipeline.gpt2_folder import PretrainedGpt2, read_gpt2
from quantized_lm.tokenizer import BOUNDARY_ID, UNK_ID, TextRules
from tests.quantized_lm.models.test_gpt2 import plain_forward
from tests.quantized_lm.pipeline.pretrained import (
    END,
    HEADS,
    LINES,
    end_of,
    library_tokenizer,
    write_gpt2_folder,
)

TEXTS = (*LINES, "The CAT; sat!", "東京 naïve 🙂", f"x{END}y", "zebra", "")
VOCABULARY = "tokenizer.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_gpt2_folder(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change the JSON of a file in place."""
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))


def score(given: PretrainedGpt2, text: str) -> float:
    """Log-probability of a text, its end included."""
    path = np.asarray([*given.tokenizer.encode(text).ids, BOUNDARY_ID], np.int32)
    parents = np.arange(len(path), dtype=np.int32)
    (log_probs,) = given.model.extend([given.model.new_state()], [parents], [path])
    return float(log_probs.sum())


def test_tokens_are_the_librarys_of_each_word_after_a_space(folder: Path) -> None:
    library = library_tokenizer()
    end = end_of(library)
    rules = TextRules(case="keep", strip_punctuation=False)
    given = read_byte_level(folder, boundary_id=end, vocab_size=end + 3, rules=rules)
    assert given.order[BOUNDARY_ID] == end
    assert sorted(given.order) == list(range(end + 3))
    library.encode_special_tokens = True  # in a text they are text
    for text in TEXTS:
        ids = list(given.tokenizer.encode(text).ids)
        spaced = "".join(f" {word}" for word in text.split())
        assert given.order[ids].tolist() == library.encode(spaced).ids, text
        assert UNK_ID not in ids
        assert BOUNDARY_ID not in ids


def test_scores_are_those_of_the_librarys_weights_and_tokens(tmp_path: Path) -> None:
    state = write_gpt2_folder(tmp_path / "gpt2")
    given = read_gpt2(tmp_path / "gpt2", TextRules())
    library = library_tokenizer()
    end = end_of(library)
    for text in LINES:
        theirs = [end, *library.encode(f" {text}").ids, end]
        logits = plain_forward(state, torch.tensor(theirs[:-1]), HEADS).double()
        expected = logits.log_softmax(-1)[torch.arange(len(theirs) - 1), theirs[1:]].sum()
        assert score(given, text) == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)
def test_what_the_library_saves_is_scored_as_by_the_library(tmp_path: Path) -> None:
    library: Any = importlib.import_module("transformers")
    tokenizer = library_tokenizer()
    end = end_of(tokenizer)
    theirs = library.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=END
    )
    theirs.save_pretrained(tmp_path)
    config = library.GPT2Config(
        vocab_size=end + 1,
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=HEADS,
        bos_token_id=end,
        eos_token_id=end,
    )
    model = library.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.save_pretrained(tmp_path)
    given = read_gpt2(tmp_path, TextRules())
    for text in LINES:
        ids = [end, *theirs(f" {text}", add_special_tokens=False)["input_ids"], end]
        with torch.no_grad():
            logits = model(torch.tensor([ids[:-1]])).logits[0].double()
        expected = logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]].sum()
        assert score(given, text) == pytest.approx(float(expected), abs=1e-3)


def test_the_older_two_files_say_the_same(folder: Path) -> None:
    whole = read_gpt2(folder, TextRules()).tokenizer
    description = json.loads((folder / VOCABULARY).read_text())
    model = description["model"]
    end = {token["content"]: token["id"] for token in description["added_tokens"]}
    (folder / "vocab.json").write_text(json.dumps(model["vocab"] | end))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (folder / VOCABULARY).unlink()
    parts = read_gpt2(folder, TextRules()).tokenizer
    assert [parts.encode(text) for text in TEXTS] == [whole.encode(text) for text in TEXTS]


def test_weights_in_several_files_are_one_model(folder: Path) -> None:
    whole = read_gpt2(folder, TextRules())
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    files = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: state[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    parts = read_gpt2(folder, TextRules())
    for ours, theirs in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert parts.sha256 != whole.sha256
    index.write_text("[]")
    with pytest.raises(DataError, match="no index of weights"):
        read_gpt2(folder, TextRules())


def test_a_token_for_the_unknown_is_taken_where_there_is_one(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    size = len(state["transformer.wte.weight"])
    token = {"id": size - 1, "content": "<unk>"}
    edit(folder / VOCABULARY, lambda spec: spec["added_tokens"].append(token))
    given = read_gpt2(folder, TextRules())
    unknown = given.model.embedding.weight[UNK_ID]
    assert torch.equal(unknown, state["transformer.wte.weight"][size - 1])
    assert given.tokenizer.encode("a <unk>").oov == ("<unk>",)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("model_type", "gpt_neo", "model_type is 'gpt_neo'; need 'gpt2'"),
        ("activation_function", "relu", "activation_function is 'relu'; need 'gelu_new'"),
        ("layer_norm_epsilon", 1e-6, "layer_norm_epsilon is 1e-06; need 1e-05"),
        ("scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx is True"),
        ("n_head", 0, "n_head is 0; need a positive number"),
        ("n_head", 3, "no whole number"),
        ("bos_token_id", 5, "need one symbol for both"),
        ("eos_token_id", [1], "need one symbol for both"),
    ],
)
def test_another_model_is_refused_by_the_field(
    tmp_path: Path, field: str, value: object, told: str
) -> None:
    write_gpt2_folder(tmp_path / "gpt2", **{field: value})
    with pytest.raises(DataError) as refused:
        read_gpt2(tmp_path / "gpt2", TextRules())
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda spec: spec.update(normalizer={"type": "NFC"}), "normalizer is {'type': 'NFC'}"),
        (lambda spec: spec["pre_tokenizer"].update(type="Metaspace"), "type is 'Metaspace'"),
        (lambda spec: spec["pre_tokenizer"].update(use_regex=False), "use_regex is False"),
        (lambda spec: spec["model"].update(type="Unigram"), "type is 'Unigram'"),
        (lambda spec: spec["model"].update(merges={}), "merges: is no list"),
        (lambda spec: spec["model"].update(vocab=[]), "vocab: is no mapping"),
        (lambda spec: spec["model"].update(vocab={"a": 0}), "need one for what is unknown"),
        (lambda spec: spec["model"]["vocab"].update({"</s>": 294}), "has </s> beside"),
        (lambda spec: spec["model"]["vocab"].update(twice=7), "both have id 7"),
        (lambda spec: spec["model"]["vocab"].update(far=999), "'far' has id 999; need 0 to 295"),
        (lambda spec: spec.update(added_tokens=[]), "no token has id 293"),
        (lambda spec: spec["model"]["merges"].append(["x", "nowhere"]), "not a tokenizer.json"),
    ],
)
def test_another_vocabulary_is_refused(
    folder: Path, change: Callable[[Any], object], told: str
) -> None:
    edit(folder / VOCABULARY, change)
    with pytest.raises(DataError) as refused:
        read_gpt2(folder, TextRules())
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("config.json", "save_pretrained"),
        (VOCABULARY, "need tokenizer.json, or vocab.json and merges.txt"),
        ("model.safetensors", "pickled weights, as pytorch_model.bin, are not read"),
    ],
)
def test_a_file_that_is_missing_or_broken_is_named(folder: Path, name: str, told: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=f"{name}: cannot be read"):
        read_gpt2(folder, TextRules())
    path.unlink()
    with pytest.raises(DataError) as refused:
        read_gpt2(folder, TextRules())
    assert told in str(refused.value)


def test_weights_of_no_whole_gpt2_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({**state, "transformer.h.0.crossattention.weight": torch.ones(2)}, path)
    with pytest.raises(DataError, match=r"gpt2: tensor 'h\.0\.crossattention\.weight' is none"):
        read_gpt2(folder, TextRules())
    save_file({"transformer.wpe.weight": torch.ones(2, 2)}, path)
    with pytest.raises(DataError, match=r"tensor 'wte\.weight' is missing"):
        read_gpt2(folder, TextRules())
    short = {**state, "lm_head.weight": torch.ones(3, 16)}
    save_file(short, path)
    with pytest.raises(DataError, match=r"'lm_head\.weight' has 3 rows; need as wte"):
        read_gpt2(folder, TextRules())
