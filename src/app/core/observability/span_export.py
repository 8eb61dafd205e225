"""Export of spans by the OpenTelemetry SDK. Only loaded when traces are enabled."""

import os
from typing import override

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from app.core import product
from app.core.observability.logs import REDACTED

_ADDRESSES = ("url.path", "url.query")


class WithoutAddresses(SpanProcessor):
    """Redacts path and query of requests, which may contain secrets. Spans and logs name the route instead."""

    @override
    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        for name in _ADDRESSES:
            if span.attributes and name in span.attributes:
                span.set_attribute(name, REDACTED)


def make_provider(exporter: str) -> TracerProvider:
    """Create the provider that exports spans in the background, configured by OpenTelemetry's standard variables."""
    return provider_to(BatchSpanProcessor(OTLPSpanExporter() if exporter == "otlp" else ConsoleSpanExporter()))


def provider_to(processor: SpanProcessor) -> TracerProvider:
    """Create a provider that passes spans, without addresses, to a processor."""
    name = os.environ.get("OTEL_SERVICE_NAME") or product.SLUG
    provider = TracerProvider(
        resource=Resource.create({"service.name": name, "service.version": product.release()}), shutdown_on_exit=False
    )
    provider.add_span_processor(WithoutAddresses())
    provider.add_span_processor(processor)
    return provider
