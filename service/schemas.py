"""The wire contract of lists and texts. Every limit is a Field, every unknown field is refused.

Numbers are finite, natural logs, higher is better; strings are not turned into numbers. What is
sent in bulk is a typed dict: checked by mypy, and not by pydantic once per hypothesis.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator, with_config
from pydantic.dataclasses import dataclass
from typing_extensions import NotRequired, Self, TypedDict

MAX_UTTERANCES = 64
MAX_HYPOTHESES = 1000
MAX_TEXT_CHARS = 16_384
MAX_CONTEXT_TEXTS = 64
MAX_LMS = 8
MAX_EXTRA_TERMS = 32
MAX_NAME_CHARS = 128
MAX_SCORE = 1e12
MAX_WEIGHT = 1e6

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
Score = Annotated[float, Field(ge=-MAX_SCORE, le=MAX_SCORE, strict=True)]
Weight = Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT)]
DeadlineMs = Annotated[float, Field(gt=0.0)]
OnOverload = Literal["error", "first_pass"]
ON_OVERLOAD = (
    "Where more waits than can be done in time: 429 `overloaded`, or at once what comes back at a "
    "deadline, marked `overloaded`."
)
Perplexity = Annotated[float | None, Field(description="exp(-log_prob / n); null beyond float64.")]


class Wire(BaseModel):
    """Base of messages: immutable, exact types, no unknown fields."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, populate_by_name=True, allow_inf_nan=False
    )


@with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class Sent(TypedDict):
    """Base of the bulk of replies: the same rules, for whoever validates them."""


# There are hundreds in a request, and with slots one takes half the memory of a model. A dataclass
# whose rules are strict is read from no dict, so its numbers are, each for itself.
@dataclass(
    frozen=True,
    slots=True,
    kw_only=True,
    config=ConfigDict(extra="forbid", populate_by_name=True, allow_inf_nan=False),
)
class Hypothesis:
    """One candidate text with the scores its decoder gave it."""

    text: Text = Field(
        description="As the decoder wrote it; empty means silence. What is no word, such as "
        "[noise], </s> or !SIL, is not scored, and <unk> is a word out of the vocabulary."
    )
    am_score: Score | None = Field(
        default=None,
        description="Acoustic, or all of the first pass: a natural log, higher is better. A cost "
        "changes its sign, a log10 is sent times 2.302585.",
    )
    graph_score: Score | None = Field(
        default=None,
        validation_alias=AliasChoices("graph_score", "lm_score"),
        description="LM or graph part of the first pass, a natural log too; sherpa-onnx's "
        "`lm_score` is accepted.",
    )
    extra: dict[Name, Score] = Field(
        default_factory=dict,
        max_length=MAX_EXTRA_TERMS,
        description="Further scores by name; `weights.extra` says what each counts for.",
    )


class Context(Wire):
    """What was said before; it is read by the LM and never scored."""

    text: list[Text] = Field(
        default_factory=list,
        max_length=MAX_CONTEXT_TEXTS,
        description="Oldest first; one in which nothing was said is left out. The newest tokens "
        "are read, up to half of what the model takes; a quarter, an eighth and so on beside a "
        "text that needs more than the other half.",
    )


class Utterance(Wire):
    """One n-best list, in the decoder's order."""

    id: Annotated[str, Field(max_length=MAX_NAME_CHARS)] | None = Field(
        default=None, description="Comes back unchanged."
    )
    hypotheses: list[Hypothesis] = Field(min_length=1, max_length=MAX_HYPOTHESES)
    final: bool = Field(default=True, description="Whether the end of sentence is scored.")
    context: Context = Field(default_factory=Context)


class LmChoice(Wire):
    """One of several LMs, and what its score counts for."""

    model: Name
    lm_scale: Weight | None = Field(default=None, description="Else `weights.lm_scale` or its own.")


class WeightChoice(Wire):
    """What each term counts for.

    A field that is absent or null takes the preset's value, or the first model's default, or
    am_scale 1 and lm_scale 0.5.
    """

    preset: Name | None = Field(default=None, description="A toolkit whose rule is wanted.")
    parameters: dict[Name, Weight] = Field(
        default_factory=dict,
        max_length=MAX_EXTRA_TERMS,
        description="The preset's own parameters, under that toolkit's names.",
    )
    am_scale: Weight | None = None
    graph_scale: Weight | None = None
    lm_scale: Weight | None = Field(default=None, description="Of each LM without one in `lms`.")
    word_bonus: Weight | None = Field(default=None, description="Added per word, nats.")
    token_bonus: Weight | None = Field(default=None, description="Added per LM token, nats.")
    char_bonus: Weight | None = Field(default=None, description="Added per character, nats.")
    bias: Weight | None = Field(default=None, description="Added per hypothesis, nats.")
    extra: dict[Name, Weight] | None = Field(default=None, max_length=MAX_EXTRA_TERMS)
    length_norm: Literal["none", "tokens", "words", "gnmt"] | None = Field(
        default=None, description="Divides the sum; gnmt: ((5 + tokens) / 6) ** gnmt_alpha."
    )
    gnmt_alpha: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    length_offset: Annotated[int, Field(ge=0, le=1000)] | None = None
    mode: Literal["log-linear", "linear"] | None = Field(
        default=None,
        description="linear: log(lm_scale * P(lm) + (1 - lm_scale) * P(graph)) is one term.",
    )

    @model_validator(mode="after")
    def _parameters_need_a_preset(self) -> WeightChoice:
        if self.parameters and self.preset is None:
            raise ValueError("got parameters without a preset; name the preset they belong to")
        return self


class Options(Wire):
    """What comes back, and when."""

    n_best: Annotated[int, Field(ge=1, le=MAX_HYPOTHESES)] | None = Field(
        default=None, description="How many hypotheses come back; null returns all."
    )
    return_tokens: bool = False
    return_words: bool = False
    return_posterior: bool | None = Field(
        default=None, description="Null: unless n_best is 1, which then scores only what can win."
    )
    posterior_scale: Annotated[float, Field(ge=0.0, le=MAX_WEIGHT)] = Field(
        default=1.0, description="posterior = softmax(posterior_scale * score) over the whole list"
    )
    oov: Literal["score-unk", "error"] = Field(
        default="score-unk",
        description="Words the LM cannot spell: score its unknown token, or refuse the utterance.",
    )
    deadline_ms: DeadlineMs | None = Field(
        default=None,
        description="From the first byte. The header X-Request-Timeout-Ms says the same, and the "
        "smaller one holds; without both it is the server's default. `/v1/limits` has the default "
        "and the maximum.",
    )
    on_deadline: Literal["first_pass", "error"] = Field(
        default="first_pass",
        description="An utterance that is not done by then comes back in the decoder's order with "
        "`degraded: [deadline]`; or the request is a 504 `deadline_exceeded`.",
    )
    on_overload: OnOverload = Field(default="error", description=ON_OVERLOAD)


class LmRequest(Wire):
    """Which LMs, and what counts. `model` may be absent if exactly one is loaded."""

    model: Name | None = None
    lms: list[LmChoice] | None = Field(default=None, min_length=1, max_length=MAX_LMS)
    weights: WeightChoice = Field(default_factory=WeightChoice)

    @model_validator(mode="after")
    def _lms_are_named_once(self) -> Self:
        names = [choice.model for choice in self.lms or []]
        if self.model is not None and names:
            raise ValueError("got model and lms; send one of the two")
        if len(set(names)) < len(names):
            raise ValueError(f"lms names {', '.join(names)}; name each model once")
        return self


class RescoreRequest(LmRequest):
    """N-best lists to rank."""

    utterances: list[Utterance] = Field(min_length=1, max_length=MAX_UTTERANCES)
    options: Options = Field(default_factory=Options)


class ScoreRequest(Wire):
    """Texts whose probability is wanted. `model` may be absent if exactly one is loaded."""

    model: Name | None = None
    texts: list[Text] = Field(min_length=1, max_length=MAX_HYPOTHESES)
    final: bool = True
    context: Context = Field(default_factory=Context)
    return_tokens: bool = True
    return_words: bool = True
    deadline_ms: DeadlineMs | None = Field(
        default=None, description="From the first byte; texts that are not scored then are a 504."
    )


class ErrorItem(Wire):
    """One fault and where it is."""

    pointer: str = Field(description="RFC 6901 pointer into the request; empty for all of it.")
    message: str


class Problem(Wire):
    """RFC 9457 problem details of one utterance."""

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable and documented; program against this.")
    errors: list[ErrorItem]


class RequestProblem(Problem):
    """RFC 9457 problem details of a whole request."""

    instance: str
    request_id: str


class TokenScore(Sent):
    """One scored token; the last one is the end of sentence if the text is final."""

    piece: str
    id: int
    log_prob: float


class WordScore(Sent):
    """One word as the LM reads it: the sum of its tokens."""

    word: str
    log_prob: float


class ScoreComponents(Sent):
    """Each term before weighting."""

    am: float | None
    graph: float | None
    lm: Annotated[
        dict[str, float | None], Field(description="null where the utterance is degraded.")
    ]
    extra: dict[str, float]


class RankedHypothesis(Sent):
    """One hypothesis in its new place.

    score = (sum of `weights` * `components`, + word_bonus * num_words + token_bonus * num_tokens
    + char_bonus * num_chars + bias) / the length that `length_norm` names.

    Where the LM was not done in time, score, posterior and `components.lm` are null: a sum without
    the LM could be taken for one with it. The decoder's own scores are in `components`.
    """

    rank: int
    input_rank: int
    text: str
    score: float | None
    posterior: NotRequired[float | None]
    components: ScoreComponents
    num_words: int
    num_tokens: Annotated[int, Field(description="Of the first LM, end of sentence excluded.")]
    num_chars: int
    oov: list[str]
    tokens: NotRequired[dict[str, list[TokenScore]]]
    words: NotRequired[dict[str, list[WordScore]]]


class RescoredUtterance(Sent):
    """One list in its new order."""

    id: str | None
    changed: Annotated[bool, Field(description="Whether another hypothesis is now the best.")]
    degraded: Annotated[
        list[str],
        Field(description="Why this is the decoder's order: deadline, overloaded; else empty."),
    ]
    hypotheses: list[RankedHypothesis]


class FailedUtterance(Wire):
    """An utterance that could not be ranked; the others of the request are unaffected."""

    id: str | None
    error: Problem


class Timing(Sent):
    """Wall-clock time of each stage, milliseconds."""

    queue_ms: float
    tokenize_ms: float
    forward_ms: float
    combine_ms: float
    total_ms: float


class UsageCounts(Sent):
    """Work asked for and work done, over all LMs."""

    hypotheses: int
    tokens: Annotated[int, Field(description="Token log-probabilities asked for.")]
    tree_nodes: Annotated[int, Field(description="Token log-probabilities computed.")]
    cache_hits: Annotated[
        int,
        Field(description="Nodes of context and texts found in a tree kept from earlier requests."),
    ]
    sharing: Annotated[float, Field(description="tokens / tree_nodes; 1 if nothing was computed.")]
    skipped_nodes: Annotated[int, Field(description="Not computed, as they could not matter.")]
    skipped_hypotheses: Annotated[int, Field(description="Not scored fully: they cannot win.")]


class EffectiveWeights(Sent):
    """The weights that were used."""

    am_scale: float
    graph_scale: float
    lm_scales: dict[str, float]
    word_bonus: float
    token_bonus: float
    char_bonus: float
    bias: float
    extra: dict[str, float]
    length_norm: str
    gnmt_alpha: float
    length_offset: int
    mode: str


class RescoreResponse(Sent):
    """The lists in their new order, in the request's order of utterances."""

    id: str
    model: Annotated[str, Field(description="Names separated by commas if there are several.")]
    revision: str
    formula: str
    weights: EffectiveWeights
    results: list[RescoredUtterance | FailedUtterance]
    timing: Timing
    usage: UsageCounts


class ScoredText(Sent):
    """Probability of one text. If it is final, its end of sentence is scored and counts in n."""

    text: str
    log_prob: float
    num_tokens: Annotated[int, Field(description="End of sentence excluded.")]
    num_words: int
    perplexity_per_token: Perplexity
    perplexity_per_word: Perplexity
    oov: list[str]
    tokens: NotRequired[list[TokenScore]]
    words: NotRequired[list[WordScore]]


class ScoreResponse(Sent):
    """The texts' probabilities, in the request's order."""

    id: str
    model: str
    revision: str
    results: list[ScoredText]
    timing: Timing
    usage: UsageCounts
