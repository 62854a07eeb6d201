"""Every route of the app, one file per subject."""

from __future__ import annotations

from fastapi import APIRouter

from service.routes import docs, lattice, limits, models, probes, rescore, score

ROUTERS: tuple[APIRouter, ...] = (
    rescore.router,
    lattice.router,
    score.router,
    models.router,
    limits.router,
    probes.router,
    docs.router,
)
