"""OpenTelemetry spans around every request, by ipcsrv's two request hooks (docs/tracing.md).

    ipcsrv run ./w.sock words:count --on-worker-start tracing:begin --on-worker-stop tracing:end \\
        --on-request-start tracing:request_begins --on-request-end tracing:request_ends
"""

from typing import Any

from opentelemetry import context, trace
from opentelemetry.trace import Status, StatusCode


def begin() -> None:
    """In each worker: the exporter has a thread, which a fork before this would have lost."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))  # or OTLPSpanExporter()
    trace.set_tracer_provider(provider)


def end() -> None:
    """In each worker that leaves: send what is still here."""
    provider: Any = trace.get_tracer_provider()
    provider.shutdown()


def request_begins(request: Any) -> None:
    """Open a span, and make it the current one, so that the spans of libraries become its children."""
    span = trace.get_tracer("ipcsrv").start_span("ipc request", kind=trace.SpanKind.SERVER)
    span.set_attribute("ipc.request.size", len(request))
    if request.peer is not None:
        span.set_attribute("ipc.peer.pid", request.peer.pid)
    token = context.attach(trace.set_span_in_context(span))
    request.span = (span, token)


def request_ends(request: Any, error: BaseException | None) -> None:
    """Close it, with what went wrong."""
    span, token = request.span
    if error is not None:
        span.record_exception(error)
        span.set_status(Status(StatusCode.ERROR, str(error)))
    context.detach(token)
    span.end()
