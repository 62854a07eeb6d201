"""Graphs of a few English words, and lattices that real k2 makes of random posteriors with them."""

from __future__ import annotations

from typing import Any

import k2
import torch

from tests.k2_env.words import LETTERS, SYMBOLS, WORDS

_SPOKEN = "we see the red sun set and then the sea is at rest"


def hlg(seed: int) -> Any:
    """Letters by CTC, words of letters, and a bigram of words with random costs.

    As icefall compiles it: a disambiguation symbol ends every word, so that it can be determinized.
    """
    generator = torch.Generator().manual_seed(seed)
    first_mark = len(LETTERS) + 1
    lexicon = k2.arc_sort(k2.Fsa.from_str(_lexicon(first_mark), num_aux_labels=1))
    grammar = k2.arc_sort(k2.Fsa.from_str(_bigram(generator), acceptor=True))
    graph = k2.connect(k2.determinize(k2.connect(k2.compose(lexicon, grammar))))
    graph.labels[graph.labels >= first_mark] = 0
    graph.__dict__["_properties"] = None
    graph = k2.connect(k2.remove_epsilon(graph))
    graph.aux_labels = graph.aux_labels.remove_values_eq(0)
    topology = k2.ctc_topo(len(LETTERS))
    graph = k2.compose(topology, k2.arc_sort(graph), inner_labels="tokens")
    return k2.arc_sort(k2.connect(graph))


def decode(graph: Any, *, seed: int, frames: int, utterances: int = 1, beam: float) -> Any:
    """The FsaVec of lattices of random posteriors in which a sentence is likelier than the rest.

    With the dead ends that k2 leaves in it: call k2.connect.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(utterances, frames, len(LETTERS) + 1, generator=generator)
    spoken = [LETTERS[letter] for letter in _SPOKEN.replace(" ", "")]
    step = frames / len(spoken)
    for position, letter in enumerate(spoken):
        logits[:, int(position * step), letter] += 3.0
    log_prob = logits.mul(1.3).log_softmax(-1)
    segments = torch.tensor([[index, 0, frames] for index in range(utterances)], dtype=torch.int32)
    return k2.intersect_dense_pruned(
        graph,
        k2.DenseFsaVec(log_prob, segments),
        search_beam=20.0,
        output_beam=beam,
        min_active_states=30,
        max_active_states=3000,
    )


def lattices() -> dict[str, Any]:
    """Lattices by name, of every kind that decoders write."""
    generator = torch.Generator().manual_seed(7)
    graph = pairs(hlg(0))
    graph.lm_scores = graph.scores.clone()
    ragged = k2.connect(decode(graph, seed=1, frames=60, utterances=3, beam=4.0))
    plain = one_word_each(hlg(1))
    plain.lm_scores = plain.scores.clone()
    words = k2.connect(decode(plain, seed=2, frames=60, beam=6.0))[0]
    words.confidence = torch.rand(words.num_arcs, generator=generator)
    bare = k2.connect(decode(one_word_each(hlg(3)), seed=3, frames=45, beam=3.0))[0]
    tokens = k2.connect(decode(k2.ctc_topo(len(LETTERS)), seed=4, frames=25, beam=3.0))[0]
    acceptor = k2.Fsa.from_dict({"arcs": tokens.as_dict()["arcs"].clone()})
    return {
        "ragged": ragged[0],
        "vector": ragged,
        "words": words,
        "bare": bare,
        "tokens": tokens,
        "acceptor": acceptor,
        "straight": k2.shortest_path(ragged, use_double_scores=True),
    }


def pairs(graph: Any) -> Any:
    """The same graph with a second word behind every word of even id: what is written in two."""
    lists = [[*row, *(word - 1 for word in row if word % 2 == 0)] for row in _lists(graph)]
    graph.aux_labels = k2.RaggedTensor(lists, dtype=torch.int32)
    return graph


def one_word_each(graph: Any) -> Any:
    """The same graph with a tensor of aux_labels in place of lists of one word or none."""
    finals = (graph.labels == -1).tolist()
    words = [
        -1 if is_final else (row or [0])[0]
        for row, is_final in zip(_lists(graph), finals, strict=True)
    ]
    arcs = graph.as_dict()["arcs"].clone()
    plain = k2.Fsa(arcs, aux_labels=torch.tensor(words, dtype=torch.int32))
    plain.tokens = graph.tokens
    return plain


def _lists(graph: Any) -> list[list[int]]:
    lists: list[list[int]] = graph.aux_labels.tolist()
    return lists


def _lexicon(mark: int) -> str:
    """One word after the other; every word ends with the same mark."""
    arcs, state = [], 1
    final = 1 + sum(len(word) for word in WORDS)
    for word_id, word in SYMBOLS.items():
        source = 0
        for index, letter in enumerate(word):
            arcs.append((source, state, LETTERS[letter], word_id if index == 0 else 0))
            source, state = state, state + 1
        arcs.append((source, 0, mark, 0))
    arcs.append((0, final, -1, -1))
    lines = [f"{source} {to} {label} {word} 0" for source, to, label, word in sorted(arcs)]
    return "\n".join([*lines, str(final)])


def _bigram(generator: torch.Generator) -> str:
    """A state for each word that came last."""
    count = len(WORDS)
    costs = torch.randn(count + 1, count + 1, generator=generator).mul(1.5).log_softmax(-1)
    final = count + 1
    lines = []
    for last in range(count + 1):
        lines += [f"{last} {word} {word} {costs[last, word]:.6f}" for word in SYMBOLS]
        lines.append(f"{last} {final} -1 {costs[last, 0]:.6f}")
    return "\n".join([*lines, str(final)])
