"""In Ray's environment: names of the applications and deployments of deploy/ray/serve.yaml."""

from __future__ import annotations

from pathlib import Path

import yaml
from ray.serve.schema import ServeDeploySchema

from tests.ray_env.telling import tell

CONFIG = Path(__file__).parents[2] / "deploy" / "ray" / "serve.yaml"

if __name__ == "__main__":
    schema = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text("utf-8")))
    names = [
        name
        for application in schema.applications
        for name in (application.name, *(one.name for one in application.deployments))
    ]
    tell(names)
