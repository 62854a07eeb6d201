"""The app on Ray Serve: `serve deploy` names `service.ray_serve:build`.

Ray routes, restarts and scales replicas. Everything else is the app's own, as on one machine: what
runs together, what is refused, and when a list comes back in the decoder's order.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve

from service.app import create_app
from service.cli import read_settings, with_a_model
from service.settings import Settings

NAME = "secondpass"


class Replica:
    """What Ray adds to the app of one replica."""

    app: FastAPI  # set by serve.ingress

    def check_health(self) -> None:
        """Have this replica replaced once its engine is gone.

        Raises:
            NotReadyError: the engine thread is not running.
        """
        self.app.state.core.require_ready()


def build(args: dict[str, Any]) -> serve.Application:
    """An application whose replicas serve the same models.

    Args:
        args: settings by name; others are read from the environment of each replica.

    Raises:
        SettingsError: one is unusable.
    """
    read_settings(args)  # a mistake is told to whoever deploys, before there is a replica

    def make_app() -> FastAPI:
        return create_app(replica_settings(args))

    return serve.deployment(serve.ingress(make_app)(Replica), name=NAME).bind()


def replica_settings(args: dict[str, Any]) -> Settings:
    """Settings of one replica, in its own environment; by default with the bundled model."""
    return with_a_model(read_settings(args))
