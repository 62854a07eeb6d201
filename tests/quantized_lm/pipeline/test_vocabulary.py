from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from quantized_lm.errors import DataError, RecipeError
from quantized_lm.pipeline.corpus import prepare_corpus
from quantized_lm.pipeline.recipe import CorpusRecipe
from quantized_lm.pipeline.vocabulary import make_tokenizer
from quantized_lm.tokenizer import BOUNDARY_ID, UNK_ID, TextRules

RECIPE = CorpusRecipe(
    train=("train.txt",),
    vocab_size=5,
    vocab_from=("train.txt",),
    vocabulary="words",
    text=TextRules(case="keep", strip_punctuation=False),
    dev="dev.txt",
    test="test.txt",
)
TEXT = "b N b\na <unk> b </s>\na c\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("train.txt", "dev.txt", "test.txt"):
        (tmp_path / name).write_text(TEXT)
    return tmp_path


def test_words_are_numbered_by_how_often_they_stand_in_the_text(data: Path) -> None:
    tokenizer = make_tokenizer(RECIPE, data)
    assert [tokenizer.piece(token) for token in range(5)] == ["</s>", "<unk>", "b", "a", "N"]


def test_a_word_outside_the_vocabulary_is_one_unknown_token(data: Path) -> None:
    encoding = make_tokenizer(RECIPE, data).encode("a c n <unk>")
    assert encoding.ids == (3, UNK_ID, UNK_ID, UNK_ID)
    assert encoding.oov == ("c", "n", "<unk>")


def test_no_text_spells_the_boundary(data: Path) -> None:
    tokenizer = make_tokenizer(RECIPE, data)
    assert BOUNDARY_ID not in tokenizer.encode("a </s> b").ids
    corpus = prepare_corpus(RECIPE, data=data, out=data / "corpus")
    assert (corpus.tokens("train") == BOUNDARY_ID).sum() == 3


def test_a_kaldi_symbol_table_gives_its_words_in_its_order(data: Path) -> None:
    table = "<eps> 0\n<UNK> 1\nzebra 2\nape 3\n#0 4\n<s> 5\n</s> 6\n"
    (data / "words.txt").write_text(table)
    recipe = replace(RECIPE, vocabulary="kaldi", vocab_from=("words.txt",), vocab_size=4)
    tokenizer = make_tokenizer(recipe, data)
    assert tokenizer.encode("ape zebra").ids == (3, 2)
    (data / "words.txt").write_bytes(b"\xef\xbb\xbf" + table.replace("\n", "\r\n").encode())
    assert make_tokenizer(recipe, data).to_json() == tokenizer.to_json()
    (data / "words.txt").write_text("zebra 2\nape\n")
    with pytest.raises(DataError, match=r"words\.txt, line 2: got 'ape'; need WORD ID"):
        make_tokenizer(recipe, data)
    (data / "words.txt").write_text("ape 2\nape 3\n")
    with pytest.raises(DataError, match="holds 'ape' twice"):
        make_tokenizer(recipe, data)


def test_what_does_not_fit_is_refused_by_name(data: Path) -> None:
    with pytest.raises(RecipeError, match="vocabulary is 'letters'; need one of bpe, words, kaldi"):
        make_tokenizer(replace(RECIPE, vocabulary="letters"), data)
    with pytest.raises(DataError, match=r"train\.txt: the vocabulary has 6 .*vocab_size is 9"):
        make_tokenizer(replace(RECIPE, vocab_size=9), data)
    with pytest.raises(RecipeError, match="give either dev or dev_lines"):
        replace(RECIPE, dev="")
    with pytest.raises(RecipeError, match="give either test or test_lines"):
        replace(RECIPE, held_out="train.txt", test_lines=3)
    with pytest.raises(RecipeError, match="held_out names the file"):
        replace(RECIPE, held_out="train.txt")


def test_one_split_may_be_held_out_and_the_other_a_file(data: Path) -> None:
    recipe = replace(RECIPE, dev="", dev_lines=1, held_out="train.txt")
    corpus = prepare_corpus(recipe, data=data, out=data / "mixed")
    whole = prepare_corpus(RECIPE, data=data, out=data / "corpus")
    assert corpus.words["train"] + corpus.words["dev"] == whole.words["train"]
    assert corpus.tokens("test").tolist() == whole.tokens("test").tolist()


def test_text_that_cannot_be_read_is_named_with_its_line(data: Path) -> None:
    (data / "dev.txt").write_bytes(b"fine\nna\xefve\n")
    with pytest.raises(DataError, match=r"dev\.txt, line 2: not UTF-8"):
        prepare_corpus(RECIPE, data=data, out=data / "corpus")
    (data / "dev.txt").write_text("\n\n")
    with pytest.raises(DataError, match="no words for dev"):
        prepare_corpus(RECIPE, data=data, out=data / "corpus")
    assert not (data / "corpus" / "corpus.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_named(data: Path) -> None:
    (data / "corpus").mkdir()
    (data / "corpus" / "train.bin").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*corpus'"):
        prepare_corpus(RECIPE, data=data, out=data / "corpus")
    assert not (data / "corpus" / "corpus.json").exists()


def test_noises_and_sentence_marks_are_no_words_of_a_vocabulary(data: Path) -> None:
    (data / "train.txt").write_text("<s> b [noise] </s>\na [noise] b ++um++ sil\n")
    tokenizer = make_tokenizer(replace(RECIPE, vocab_size=4), data)
    assert [tokenizer.piece(token) for token in range(4)] == ["</s>", "<unk>", "b", "a"]


def test_a_table_whose_words_the_text_never_has_is_refused(data: Path) -> None:
    (data / "words.txt").write_text("ZEBRA 2\nAPE 3\nan 4\n")
    recipe = replace(RECIPE, vocabulary="kaldi", vocab_from=("words.txt",), text=TextRules())
    with pytest.raises(DataError, match="2 of 3 words never occur .*'ZEBRA', which is 'zebra'"):
        make_tokenizer(recipe, data)
    upper = replace(recipe, text=TextRules(case="upper"))
    assert make_tokenizer(upper, data).encode("zebra").ids == (2,)


def test_a_file_that_counts_twice_is_held_out_from_once(data: Path) -> None:
    once = replace(RECIPE, dev="", dev_lines=1, held_out="train.txt")
    twice = replace(once, train=("train.txt", "train.txt"))
    first = prepare_corpus(once, data=data, out=data / "once").words
    second = prepare_corpus(twice, data=data, out=data / "twice").words
    assert second == {**first, "train": 2 * first["train"]}
