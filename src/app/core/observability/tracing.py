"""OpenTelemetry traces, enabled by OpenTelemetry's standard variables. While they are disabled, the SDK is not loaded."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import NoOpTracer, SpanKind, StatusCode, Tracer, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.db.database import Database
from app.core.db.reads import SessionReads
from app.core.errors import ConfigurationError

UNTRACED: Tracer = NoOpTracer()
_EXPORTERS = {"otlp", "console"}
_PROTOCOL = "http/protobuf"
_W3C = TraceContextTextMapPropagator()
_PARENT = "traceparent"


class Tracing:
    """The traces of one process. FastAPI makes the spans of requests; this module makes those of statements and jobs."""

    def __init__(self, provider: TracerProvider, shutdown: Callable[[], None]) -> None:
        self.provider = provider
        # Call it at the end of the process. It exports the remaining spans, and waits for the collector.
        self.shutdown = shutdown
        self.tracer = provider.get_tracer("app")

    def trace_statements(self, database: Database) -> None:
        """Make a span for each statement of a traced request or job. From now on, `database.reads` uses sessions."""
        for engine in (database.engine, database.read_engine):
            self.trace_engine(engine)
        # `DirectReads` bypasses the events of the engine, so its statements would have no spans.
        database.reads = SessionReads(database.read_sessions)

    def trace_engine(self, engine: AsyncEngine) -> None:
        """Make a span for each statement of a traced request or job on this engine."""
        _trace_statements(engine.sync_engine, self.tracer)


def tracing_from_environment() -> Tracing | None:
    """Return the traces if the standard variables name an exporter or an endpoint. None if they do not, or disable the SDK.

    Raises `ConfigurationError` for an exporter or a protocol that is not supported. The variables are described in
    https://opentelemetry.io/docs/specs/otel/configuration.
    """
    exporter = _exporter()
    if exporter is None:
        return None
    from app.core.observability import span_export

    provider = span_export.make_provider(exporter)
    return Tracing(provider, provider.shutdown)


def _exporter() -> str | None:
    def setting(name: str) -> str:
        return os.environ.get(name, "").strip().lower()

    endpoint = setting("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or setting("OTEL_EXPORTER_OTLP_ENDPOINT")
    exporter = setting("OTEL_TRACES_EXPORTER") or ("otlp" if endpoint else "none")
    if setting("OTEL_SDK_DISABLED") == "true" or exporter == "none":
        return None
    if exporter not in _EXPORTERS:
        raise ConfigurationError(f"OTEL_TRACES_EXPORTER: {exporter} is not supported; set otlp, console or none")
    protocol = setting("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or setting("OTEL_EXPORTER_OTLP_PROTOCOL") or _PROTOCOL
    if protocol != _PROTOCOL:
        raise ConfigurationError(f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol} is not supported; set {_PROTOCOL}")
    return exporter


def _trace_statements(engine: Engine, tracer: Tracer) -> None:
    def begin(statement: str, context: Any, **_: object) -> None:
        # Statements outside of requests and jobs, such as the queries of the job worker, would each start a new trace.
        if current_trace_id():
            operation = statement.split(None, 1)[0].upper()
            attributes = {"db.system.name": "postgresql", "db.operation.name": operation, "db.query.text": statement}
            context.span = tracer.start_span(operation, kind=SpanKind.CLIENT, attributes=attributes)

    def end(context: Any, **_: object) -> None:
        if span := getattr(context, "span", None):
            span.end()

    def fail(failure: ExceptionContext) -> None:
        if span := getattr(failure.execution_context, "span", None):
            # Not the text of the error, because it may quote values.
            error = failure.original_exception
            span.set_attribute("error.type", getattr(error, "sqlstate", None) or type(error).__name__)
            span.set_status(StatusCode.ERROR)
            span.end()

    event.listen(engine, "before_cursor_execute", begin, named=True)
    event.listen(engine, "after_cursor_execute", end, named=True)
    event.listen(engine, "handle_error", fail)


def current_trace_id() -> str | None:
    context = trace.get_current_span().get_span_context()
    return format(context.trace_id, "032x") if context.is_valid else None


def current_parent() -> str | None:
    """Return the `traceparent` value with which another process can continue the current trace (W3C Trace Context)."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get(_PARENT)


@contextmanager
def continued(tracer: Tracer, name: str, parent: str | None, **attributes: str | int) -> Iterator[str | None]:
    """Run the block as a span of the trace of `parent`, or of a new trace. Yields the id of the trace."""
    context = _W3C.extract({_PARENT: parent} if parent else {})
    with tracer.start_as_current_span(
        name,
        context,
        kind=SpanKind.CONSUMER,
        attributes=attributes,
        # The text of an exception may quote secrets. The log contains it, redacted.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield current_trace_id()
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(StatusCode.ERROR)
            raise
