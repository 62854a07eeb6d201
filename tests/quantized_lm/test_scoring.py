from __future__ import annotations

import numpy as np
import pytest

from quantized_lm.artifact import LoadedModel, load_artifact
from quantized_lm.errors import TooLongError
from quantized_lm.scoring import ScoreRequest, context_room, prepare, run_batch, score_lists
from tests.conftest import TinyRun

TEXTS = ("the cat sees the dog", "the cat sees the king", "", "the cat sees the dog")


@pytest.fixture(scope="module")
def loaded(tiny_run: TinyRun) -> LoadedModel:
    return load_artifact(tiny_run.artifact)


def test_a_text_scores_alone_in_a_list_and_in_a_batch_alike(loaded: LoadedModel) -> None:
    request = ScoreRequest(TEXTS, context=("the queen likes the river",))
    stranger = ScoreRequest(("the train follows the letter at night",))
    (in_list,) = score_lists([request], loaded)
    in_batch = score_lists([stranger, request, stranger], loaded)[1]
    for index, text in enumerate(TEXTS):
        (alone,) = score_lists([ScoreRequest((text,), context=request.context)], loaded)
        expected = alone.scores[0].log_prob
        assert in_list.scores[index].log_prob == pytest.approx(expected, abs=1e-4)
        assert in_batch.scores[index].log_prob == pytest.approx(expected, abs=1e-4)


def test_the_context_changes_the_score(loaded: LoadedModel) -> None:
    request = ScoreRequest(TEXTS[:1], context=("the queen likes the river",))
    (with_context,) = score_lists([request], loaded)
    (without,) = score_lists([ScoreRequest(TEXTS[:1])], loaded)
    assert with_context.scores[0].log_prob != without.scores[0].log_prob


def test_tokens_and_words_add_up_to_the_text(loaded: LoadedModel) -> None:
    (result,) = score_lists([ScoreRequest(TEXTS)], loaded)
    score = result.scores[0]
    assert score.token_ids[-1] == 0
    assert score.num_tokens == len(score.token_ids) - 1
    assert score.log_prob == pytest.approx(float(score.token_log_probs.sum()), abs=1e-4)
    ending = float(score.token_log_probs[-1])
    assert sum(score.word_log_probs()) + ending == pytest.approx(score.log_prob, abs=1e-4)
    assert len(score.word_log_probs()) == 5
    assert (score.token_log_probs <= 0).all()
    silence = result.scores[2]
    assert silence.num_tokens == 0
    assert len(silence.token_log_probs) == 1


def test_details_of_a_text_are_those_of_its_list(loaded: LoadedModel) -> None:
    (result,) = score_lists([ScoreRequest((*TEXTS, "the cat 77"))], loaded)
    for position, score in enumerate(result.scores):
        detail = result.detail(position)
        assert detail.token_log_probs.tolist() == score.token_log_probs.tolist()
        assert result.log_prob[position] == detail.token_log_probs.astype(np.float64).sum()
        assert result.oov.get(position, ()) == detail.oov
    assert dict(result.oov) == {4: ("77",)}


def test_shared_prefixes_are_paid_once(loaded: LoadedModel) -> None:
    (result,) = score_lists([ScoreRequest(TEXTS)], loaded)
    usage = result.usage
    assert usage.hypotheses == 4
    assert usage.tokens == sum(len(score.token_ids) for score in result.scores)
    assert usage.tree_nodes < usage.tokens
    assert usage.forward_nodes < usage.tree_nodes
    prepared = prepare(ScoreRequest(TEXTS), loaded)
    assert prepared.cost_tokens == usage.tree_nodes + 1


def test_an_unfinished_text_is_scored_without_its_end(loaded: LoadedModel) -> None:
    (final,) = score_lists([ScoreRequest(TEXTS)], loaded)
    (partial,) = score_lists([ScoreRequest(TEXTS, final=False)], loaded)
    ending = float(final.scores[0].token_log_probs[-1])
    assert partial.scores[0].log_prob == pytest.approx(final.scores[0].log_prob - ending, abs=1e-4)
    assert partial.scores[2].log_prob == 0.0
    assert partial.scores[0].num_tokens == final.scores[0].num_tokens


def test_a_text_that_is_too_long_is_named(loaded: LoadedModel) -> None:
    long = " ".join(["cat"] * 96)
    with pytest.raises(TooLongError, match="takes at most 95") as caught:
        prepare(ScoreRequest(("the cat", long)), loaded)
    assert caught.value.pointer == "/hypotheses/1/text"


def test_only_the_newest_context_that_fits_is_used(loaded: LoadedModel) -> None:
    old, new = "the king finds the train by the river", "the cat sees the dog"
    prepared = prepare(ScoreRequest(("the cat",), context=(old,) * 20 + (new,)), loaded)
    assert prepared.tree.depth <= loaded.model.max_tokens
    ids = (*loaded.tokenizer.encode(new).ids, 0)
    assert prepared.tree.token[prepared.tree.base + 1 - len(ids) :][: len(ids)].tolist() == list(
        ids
    )
    assert np.isfinite(run_batch([prepared], loaded)[0].scores[0].log_prob)


@pytest.mark.parametrize(
    ("text_tokens", "room"), [(0, 48), (48, 48), (49, 24), (72, 24), (73, 12), (95, 1), (96, 0)]
)
def test_the_context_has_half_the_room_or_less_by_halves(text_tokens: int, room: int) -> None:
    assert context_room(96, text_tokens) == room


def test_list_mates_do_not_change_what_is_read_of_a_long_context(loaded: LoadedModel) -> None:
    context = ("the king finds the train by the river",) * 20
    text, mate = "the cat sees the dog", "the queen " * 20
    (alone,) = score_lists([ScoreRequest((text,), context)], loaded)
    (in_list,) = score_lists([ScoreRequest((text, mate), context)], loaded)
    assert in_list.log_prob[0] == pytest.approx(alone.log_prob[0], abs=1e-4)
