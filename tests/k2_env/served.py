"""In k2's environment: `served URL` has a service rescore lattices, and asks k2 of the answers."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import k2

from quantized_lm.errors import SecondpassError
from service.client import Client, ClientSettings
from service.k2_client import RescoredFsa, RescoreOptions, rescore_lattice, rescore_lattices
from tests.k2_env.memory import sequences
from tests.k2_env.toys import decode, hlg, lattices
from tests.k2_env.words import SYMBOLS

WEIGHTS = {"am_scale": 0.9, "graph_scale": 0.4, "lm_scale": 0.7, "word_bonus": 0.5}
OPTIONS = RescoreOptions(n_best=5)


def main(url: str) -> None:
    """Print what the service says and what k2 finds in the lattices that come back."""
    named = lattices()
    found: dict[str, Any] = {}
    with Client(url, ClientSettings(deadline_ms=30_000)) as client:
        sent: dict[str, Any] = {"client": client, "symbols": SYMBOLS, "weights": WEIGHTS}
        for name in ("ragged", "words", "bare"):
            found[name] = _findings(rescore_lattice(named[name], options=OPTIONS, **sent))
        as_json = dataclasses.replace(OPTIONS, wire="k2-json")
        found["words as JSON"] = _findings(rescore_lattice(named["words"], options=as_json, **sent))
        endless = {"order": None, "patience": None, "max_lm_steps": 100_000}
        exact = dataclasses.replace(OPTIONS, search=endless, returns_fsa=False)
        answer = rescore_lattice(named["bare"], options=exact, **sent)
        found["exact"] = [answer.is_exact, answer.hypotheses[0].score, answer.fsa is None]
        raw = decode(hlg(0), seed=1, frames=60, utterances=18, beam=3.0)
        many = rescore_lattices(raw, options=OPTIONS, **sent)
        found["many"] = [_findings(one) for one in many]
        found["refused"] = [
            _refusal(named["bare"], {**sent, "weights": {"no_scale": 1.0}}),
            _refusal(named["bare"], {**sent, "symbols": {1: "we"}}),
            _refusal(named["vector"], sent),
        ]
        best = sequences(named["bare"])["best"]
        for name, other in {
            "absent": Client("http://127.0.0.1:1"),
            "unknown model": client,
        }.items():
            asked = dataclasses.replace(OPTIONS, model="nobody")
            own = rescore_lattice(named["bare"], options=asked, **{**sent, "client": other})
            text = " ".join(SYMBOLS[word] for word in best)
            found[name] = [own.degraded, own.hypotheses[0].text == text, own.fsa is None]
        none = k2.create_fsa_vec([named["bare"], k2.Fsa.from_str("0 1 1 0 0\n2", num_aux_labels=1)])
        found["one is empty"] = [
            one.hypotheses[0].text if isinstance(one, RescoredFsa) else str(one)
            for one in rescore_lattices(none, options=OPTIONS, **sent)
        ]
    print(json.dumps(found))  # noqa: T201


def _findings(answer: RescoredFsa | SecondpassError) -> dict[str, Any]:
    """The service's best and its total, and what k2 makes of the FSA of the reply."""
    if isinstance(answer, SecondpassError):
        return {"error": str(answer)}
    fsa = answer.fsa
    vector = k2.create_fsa_vec([fsa])
    posteriors = vector.get_arc_post(True, True).exp()
    best = k2.shortest_path(vector, use_double_scores=True)
    (lm,) = answer.hypotheses[0].fields["components"]["lm"].values()
    return {
        "hypotheses": [[one.text, one.score, one.posterior] for one in answer.hypotheses],
        "k2": sequences(fsa, num_paths=300),
        "properties": fsa.properties_str,
        "log_total": vector.get_tot_scores(True, True).item(),
        "posterior_at_start": posteriors[fsa.arcs.values()[:, 0] == 0].sum().item(),
        "posterior_at_end": posteriors[fsa.labels == -1].sum().item(),
        "attributes": sorted(fsa.as_dict()),
        "lm": [lm, best.lm.double().sum().item()],
        "am": [
            WEIGHTS["am_scale"] * answer.hypotheses[0].fields["components"]["am"],
            (best.scores.double() - best.lm_scores.double()).sum().item(),
        ],
    }


def _refusal(fsa: Any, sent: dict[str, Any]) -> str:
    try:
        rescore_lattice(fsa, options=OPTIONS, **sent)
    except SecondpassError as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    main(sys.argv[1])
