"""Valid requests for every route that takes a POST; the fuzzer damages them."""

from __future__ import annotations

import json
from dataclasses import replace

from quantized_lm.lattice.formats import LATTICE_FORMATS
from service.routes.lattice import EXAMPLE as LATTICE_EXAMPLE
from service.routes.lattice import PATH as LATTICE_PATH
from tests.fuzzing.mutations import Sent
from tests.quantized_lm.lattice.random_lattices import random_lattice
from tests.service.serving import Json, lattice_entry, request, utterance

SPARE = "spare"  # loaded, unloaded and reloaded, but never asked
RESCORE, SCORE = "/v1/rescore", "/v1/score"
ADMIN = tuple(f"/v1/admin/models/{SPARE}/{verb}" for verb in ("load", "unload", "reload"))
DRAIN = "/v1/admin/drain"  # not sent: what comes after would all be 503
LATTICE_SEEDS = 4
FULL = request(
    utterance("the cat sat", "a cat sat", "", "zebra", id="u1", context={"text": ["an old dog"]}),
    utterance("run far", final=False),
    model="tiny",
    weights={
        "preset": None,
        "am_scale": 1.0,
        "graph_scale": 0.0,
        "lm_scale": 0.5,
        "word_bonus": 0.1,
        "length_norm": "words",
        "extra": {},
    },
    options={
        "n_best": 2,
        "return_tokens": True,
        "return_words": True,
        "posterior_scale": 0.5,
        "oov": "score-unk",
        "deadline_ms": 100.0,
        "on_deadline": "first_pass",
    },
)
BODIES: tuple[tuple[str, Json], ...] = (
    (RESCORE, request()),
    (RESCORE, FULL),
    (RESCORE, request(utterance(*(f"the cat {n}" for n in range(30))), options={"n_best": 1})),
    (RESCORE, request(lms=[{"model": "tiny", "lm_scale": 0.3}, {"model": "other"}])),
    (SCORE, {"texts": ["the cat sat", "", "far from it"], "model": "tiny"}),
    (SCORE, {"texts": ["the mat"], "final": False, "return_words": False, "model": "tiny"}),
    (LATTICE_PATH, LATTICE_EXAMPLE),
    *((path, {}) for path in ADMIN),
)


def seeds() -> tuple[Sent, ...]:
    """All of them."""
    sent = [Sent(path, json.dumps(body).encode()) for path, body in BODIES]
    for number in range(LATTICE_SEEDS):
        lattice = replace(random_lattice(number), utterance="u1")
        entry = {"lattices": [lattice_entry(lattice)], "options": {"max_lm_steps": 100}}
        sent.append(Sent(LATTICE_PATH, json.dumps({**entry, "model": "tiny"}).encode()))
        sent += [
            Sent(
                LATTICE_PATH,
                one.write([lattice]),
                "n_best=2&max_lm_steps=100&model=tiny",
                {"content-type": one.media_type},
            )
            for one in LATTICE_FORMATS.values()
        ]
    return tuple(sent)
