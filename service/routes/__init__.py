"""Every route of the app, one file per subject."""

from __future__ import annotations

from fastapi import APIRouter

from service.routes import admin, docs, lattice, limits, models, page, probes, rescore, score

# Where a POST does not go the framework's way (`direct.py`).
DIRECT_ROUTERS: tuple[APIRouter, ...] = (rescore.router, score.router)
# The main port has these always, and those of the operator if there is no admin port.
ROUTERS: tuple[APIRouter, ...] = (
    rescore.router,
    lattice.router,
    score.router,
    models.router,
    limits.router,
    probes.router,
    docs.router,
    page.router,
)
OPERATOR_ROUTERS: tuple[APIRouter, ...] = (admin.router, probes.metrics_router)
PROBE_ROUTERS: tuple[APIRouter, ...] = (probes.router,)
