"""The wire contract of lattices, by the rules of `schemas.py`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, WithJsonSchema, model_validator
from typing_extensions import NotRequired

from service.schemas import (
    MAX_CONTEXT_TEXTS,
    MAX_HYPOTHESES,
    MAX_NAME_CHARS,
    MAX_WEIGHT,
    ON_OVERLOAD,
    Context,
    DeadlineMs,
    EffectiveWeights,
    FailedUtterance,
    LmRequest,
    Name,
    OnOverload,
    Sent,
    Text,
    Timing,
    Weight,
    WeightChoice,
    Wire,
)

MAX_LATTICES = 16
MAX_LATTICE_BEST = 100
MAX_LM_STEPS = 100_000
MAX_SILENCE = 256

TextFormat = Literal["k2-text", "kaldi-text", "htk", "openfst-text"]
BinaryFormat = Literal["k2-safetensors", "k2-pt", "kaldi-binary"]
Id = Annotated[str, Field(max_length=MAX_NAME_CHARS)]
CONTENT = ("lattice", "text", "base64")
# Checked where it is read, which ends at the first fault: a table may have millions of entries.
Symbols = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"additionalProperties": {"type": "string"}, "type": "object"},
                {"items": {"type": "string"}, "type": "array"},
                {"type": "null"},
            ]
        }
    ),
]


class LatticeInput(Wire):
    """One lattice in one of three forms, and what it does not say of itself."""

    id: Id | None = Field(default=None, description="Comes back; else the lattice's own.")
    lattice: dict[str, Any] | None = Field(
        default=None, description="k2-json: {arcs: [[src, dst, label, score], ...], ...}."
    )
    text: str | None = Field(default=None, description="A lattice in the text format `format`.")
    base64: str | None = Field(default=None, description="The same in a binary one.")
    format: Literal[TextFormat, BinaryFormat, "k2-json"] | None = None
    symbols: Symbols = Field(
        default=None, description="Words by id, where the lattice has ids alone."
    )
    context: Context = Field(default_factory=Context)
    final: bool = Field(default=True, description="Whether the end of sentence is scored.")

    @model_validator(mode="after")
    def _content_is_of_its_format(self) -> LatticeInput:
        given = [name for name in CONTENT if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"got {' and '.join(given) or 'no lattice'}; send one of {CONTENT}")
        formats = FORMATS_IN[given[0]]
        if (self.format or "k2-json") not in formats:
            raise ValueError(f"{given[0]} is {self.format}; need format {' or '.join(formats)}")
        return self


FORMATS_IN: dict[str, tuple[str, ...]] = {
    "lattice": ("k2-json",),
    "text": get_args(TextFormat),
    "base64": get_args(BinaryFormat),
}


class LatticeOptions(Wire):
    """How far the search goes, and what comes back."""

    n_best: Annotated[int, Field(ge=1, le=MAX_LATTICE_BEST)] = 1
    return_lattice: bool = Field(
        default=False, description="The sequences that were scored, as a lattice with new scores."
    )
    return_words: bool = False
    posterior_scale: Annotated[float, Field(ge=0.0, le=MAX_WEIGHT)] = Field(
        default=1.0,
        description="posterior = softmax(posterior_scale * score) over all sequences that were "
        "scored to their end, n_best or more",
    )
    deadline_ms: DeadlineMs | None = Field(
        default=None,
        description="From the first byte; then the best that is known comes back. The header "
        "X-Request-Timeout-Ms says the same, and the smaller one holds; without both it is the "
        "server's default.",
    )
    on_overload: OnOverload = Field(default="error", description=ON_OVERLOAD)
    seeds: Annotated[int, Field(ge=1, le=MAX_LATTICE_BEST)] = Field(
        default=10, description="Sequences, best by the lattice alone, that are scored first."
    )
    order: Annotated[int, Field(ge=2, le=MAX_HYPOTHESES)] | None = Field(
        default=4,
        description="Of two histories with the same last order - 1 words in one state the better "
        "one goes on; null merges none.",
    )
    beam: Annotated[float, Field(ge=0.0, le=MAX_WEIGHT)] | None = Field(
        default=None, description="Nats below the best at which a sequence is given up."
    )
    patience: Annotated[int, Field(ge=1, le=MAX_LM_STEPS)] | None = Field(
        default=300,
        description="LM steps without a better sequence: the best one first, then the last of "
        "n_best; null waits for ever.",
    )
    max_lm_steps: Annotated[int, Field(ge=1, le=MAX_LM_STEPS)] = 6_000
    silence: list[Name] = Field(
        default_factory=list,
        max_length=MAX_SILENCE,
        description="Symbols that are no words, besides <eps>, !NULL, [noise] and the like.",
    )


class LatticeRequest(LmRequest):
    """Lattices to rescore with one LM."""

    lattices: list[LatticeInput] = Field(min_length=1, max_length=MAX_LATTICES)
    options: LatticeOptions = Field(default_factory=LatticeOptions)


class LatticeQuery(LatticeOptions):
    """What a request whose body is a lattice says in its query: options, model and weights."""

    model: Name | None = None
    preset: Name | None = None
    am_scale: Weight | None = None
    graph_scale: Weight | None = None
    lm_scale: Weight | None = None
    word_bonus: Weight | None = None
    token_bonus: Weight | None = None
    context: list[Text] = Field(default_factory=list, max_length=MAX_CONTEXT_TEXTS)
    final: bool = True

    def weights(self) -> WeightChoice:
        """The weights among them."""
        return WeightChoice(**self.model_dump(include=set(WeightChoice.model_fields)))

    def options(self) -> LatticeOptions:
        """The options among them."""
        return LatticeOptions(**self.model_dump(include=set(LatticeOptions.model_fields)))


class LatticeWord(Sent):
    """One word of a hypothesis, as the lattice writes it."""

    word: str
    lm: Annotated[float | None, Field(description="Nats; null where the LM was not asked.")]
    confidence: Annotated[
        float,
        Field(
            description="Sum of the posteriors of the scored sequences in which the same word is "
            "aligned to it, with the fewest word errors."
        ),
    ]
    start: NotRequired[Annotated[float, Field(description="Seconds, where states have times.")]]
    end: NotRequired[float]


class LatticeComponents(Sent):
    """Each term before weighting, summed along the best path; null stands for -infinity."""

    am: float | None
    graph: float | None
    lm: Annotated[
        dict[str, float | None], Field(description="null where the LM was not asked in time.")
    ]


class LatticeHypothesis(Sent):
    """One word sequence of the lattice.

    score = am_scale * am + graph_scale * graph + lm_scale * lm + word_bonus * num_words
    + token_bonus * num_tokens. posterior = softmax(posterior_scale * score) over all sequences that
    were scored to their end.
    """

    rank: int
    text: str
    score: float
    posterior: float
    components: LatticeComponents
    num_words: int
    num_tokens: Annotated[int, Field(description="Of the LM, end of sentence excluded.")]
    oov: list[str]
    words: NotRequired[list[LatticeWord]]


class RescoredLattice(Sent):
    """A lattice in the format that came in: `json`, `text` or `base64` has it.

    Its scores are weighed, so that am + graph along a path is the path's score; the LM's own nats
    are the arc attribute `lm`, in formats that have attributes.
    """

    format: str
    media_type: str
    json: NotRequired[dict[str, Any]]
    text: NotRequired[str]
    base64: NotRequired[str]
    symbols: NotRequired[
        Annotated[dict[str, str], Field(description="Where words came and only ids can be said.")]
    ]


class LatticeResult(Sent):
    """What became of one lattice."""

    id: str | None
    exact: Annotated[bool, Field(description="No sequence can be better than these.")]
    degraded: Annotated[
        list[str], Field(description="What ended it: deadline, overloaded, max_lm_steps, ...")
    ]
    cuts: Annotated[list[str], Field(description="Choices that did: order, beam, patience.")]
    hypotheses: list[LatticeHypothesis]
    lattice: NotRequired[RescoredLattice]


class LatticeUsage(Sent):
    """Work of all lattices of a request."""

    arcs: int
    states: int
    density: Annotated[float | None, Field(description="Arcs per word of the best paths.")]
    lm_steps: Annotated[int, Field(description="Nodes run through the network, the context's too.")]
    tree_nodes: Annotated[int, Field(description="Log-probabilities computed.")]
    cache_hits: Annotated[
        int, Field(description="Nodes found in a tree kept from an earlier request.")
    ]
    waves: Annotated[int, Field(description="Rounds of the searches.")]
    sequences: Annotated[int, Field(description="Scored to their end.")]


class LatticeResponse(Sent):
    """The lattices' best sequences, in the request's order."""

    id: str
    model: str
    revision: str
    formula: str
    weights: EffectiveWeights
    results: list[LatticeResult | FailedUtterance]
    timing: Timing
    usage: LatticeUsage
