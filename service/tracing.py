"""Whether requests are traced, by the standard OTEL_* variables; spans are made by `spans`."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.spans import RequestSpans

logger = logging.getLogger(__name__)
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
HTTP = "http/protobuf"


def start_tracing(environ: Mapping[str, str]) -> RequestSpans | None:
    """What makes spans, if an exporter is configured; what it cannot do is logged, never fatal.

    The variables are often set for every container of a cluster, so none of them may keep the
    server from starting.

    Args:
        environ: the environment; the SDK reads the same.
    """
    if not _is_configured(environ):
        return None
    protocol = next((environ[name] for name in PROTOCOLS if environ.get(name)), HTTP)
    if protocol != HTTP:
        logger.warning("no traces: the OTLP protocol is %r; need %s", protocol, HTTP)
        return None
    if importlib.util.find_spec("opentelemetry") is None or not importlib.util.find_spec(
        "opentelemetry.sdk"
    ):
        logger.warning("no traces: OTEL_* asks for them; need pip install 'secondpass[otel]'")
        return None
    try:
        return _exporting(environ)
    except ValueError as error:  # the SDK's, of a variable that is out of its range
        logger.warning("no traces: the OTEL_* variables are refused (%s)", error)
        return None


def _is_configured(environ: Mapping[str, str]) -> bool:
    is_disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporters = environ.get("OTEL_TRACES_EXPORTER", "otlp").lower().split(",")
    is_wanted = "otlp" in map(str.strip, exporters)
    return not is_disabled and is_wanted and any(environ.get(name) for name in ENDPOINTS)


def _exporting(environ: Mapping[str, str]) -> RequestSpans:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - optional
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - optional
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - optional
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - optional

    from service.spans import RequestSpans  # noqa: PLC0415 - optional

    named = {} if environ.get("OTEL_SERVICE_NAME") else {"service.name": "secondpass"}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return RequestSpans(provider)
