"""What of OpenTelemetry's SDK traces need: where spans go, and what must not go with them."""

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
    """Takes out the address, as the log has only the route: it may carry what somebody pasted into it."""

    @override
    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        for name in _ADDRESSES:
            if span.attributes and name in span.attributes:
                span.set_attribute(name, REDACTED)


def make_provider(exporter: str) -> TracerProvider:
    """Make what passes spans on, in the background, as the standard variables say."""
    return provider_to(BatchSpanProcessor(OTLPSpanExporter() if exporter == "otlp" else ConsoleSpanExporter()))


def provider_to(processor: SpanProcessor) -> TracerProvider:
    """Make what hands spans to this processor."""
    name = os.environ.get("OTEL_SERVICE_NAME") or product.SLUG
    provider = TracerProvider(
        resource=Resource.create({"service.name": name, "service.version": product.release()}), shutdown_on_exit=False
    )
    provider.add_span_processor(WithoutAddresses())
    provider.add_span_processor(processor)
    return provider
