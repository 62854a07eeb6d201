"""Every setting, preset, endpoint, metric and error code stands in the reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantized_lm.presets import PRESETS
from service.app import create_app
from service.errors import ERRORS, HTTP_ERRORS
from service.metrics import REFUSED_CONNECTIONS, Metrics
from service.settings import Settings


@pytest.fixture(scope="module")
def reference() -> str:
    """The page beside the package."""
    return (Path(__file__).parents[2] / "service" / "REFERENCE.md").read_text(encoding="utf-8")


def test_every_setting_is_documented_with_its_default(reference: str) -> None:
    for name, field in Settings.model_fields.items():
        default = "" if field.default == () else field.default
        assert f"| `SECONDPASS_{name.upper()}` | `{default}` |" in reference


def test_every_preset_is_documented_with_its_rule_and_defaults(reference: str) -> None:
    for name, preset in PRESETS.items():
        parameters = ", ".join(
            f"`{parameter}` {'required' if default is None else f'{default:g}'}"
            for parameter, default in preset.defaults.items()
        )
        assert f"| `{name}` | `{preset.rule}` | {parameters} |" in reference


def test_every_endpoint_is_documented(reference: str) -> None:
    paths = create_app(Settings()).openapi()["paths"]
    for path, operations in paths.items():
        for method in operations:
            assert f"| `{method.upper()} {path}` |" in reference
    for path in ("/docs", "/openapi.json"):
        assert f"| `GET {path}` |" in reference


def test_every_metric_is_documented(reference: str) -> None:
    for metric in Metrics().registry.collect():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        assert f"| `{name}` | {metric.type} |" in reference


def test_every_reason_to_refuse_a_connection_is_documented_and_counts_from_zero(
    reference: str,
) -> None:
    metrics = Metrics()
    (row,) = (line for line in reference.splitlines() if "`rescore_connections_refused_" in line)
    for reason in REFUSED_CONNECTIONS:
        assert f"`{reason}`" in row
        name = "rescore_connections_refused_total"
        assert metrics.registry.get_sample_value(name, {"reason": reason}) == 0.0


def test_every_error_code_is_documented_with_its_status(reference: str) -> None:
    for kind in (*ERRORS.values(), *HTTP_ERRORS.values()):
        assert f"| {kind.status} | `{kind.code}` |" in reference
