"""Traces go over both ways between BullMQ's own OpenTelemetry package in Node and us."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from shared_queue import Queue

from oxherd.context import Context
from oxherd.telemetry.events import JobEnded, attach
from oxherd.telemetry.tracing import Tracing


@pytest.fixture
def spans(queue: Queue) -> Iterator[Callable[[str], ReadableSpan]]:
    """Our spans that have ended, by name."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    stop = Tracing(provider.get_tracer("test"), queue.name, content=False, hide=str).attach()

    def named(name: str) -> ReadableSpan:
        (found,) = [span for span in memory.get_finished_spans() if span.name == name]
        return found

    yield named
    stop()


def ids(span: ReadableSpan) -> tuple[str, str]:
    assert span.context is not None
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


async def node_span(queue: Queue, name: str) -> dict[str, Any]:
    (found,) = [span for span in await queue.node("spans") if span["name"] == name]
    return dict(found)


async def test_our_worker_goes_on_with_the_trace_of_a_node_producer(queue: Queue, spans: Callable[[str], ReadableSpan]):
    async def echo(ctx: Context, payload: dict[str, Any]) -> None: ...

    ended = asyncio.Event()
    detach = attach(lambda _: ended.set(), JobEnded)
    await queue.work(echo=echo)
    await queue.node("traceQueue", queue.name)
    await queue.add("echo", {})
    await asyncio.wait_for(ended.wait(), 10)
    detach()
    added = await node_span(queue, f"add {queue.name}.echo")
    ours = spans(f"process {queue.name}")
    assert ids(ours)[0] == added["trace"]
    assert ours.parent is not None
    assert f"{ours.parent.span_id:016x}" == added["id"]


async def test_a_node_worker_goes_on_with_our_producer_s_trace(queue: Queue, spans: Callable[[str], ReadableSpan]):
    await queue.node("traceWork", queue.name)
    job_id = await queue.producer.add("echo", {})
    await queue.finish(job_id)
    await queue.node("rest", queue.name)
    theirs = await node_span(queue, f"process {queue.name}")
    assert (theirs["trace"], theirs["parent"]) == ids(spans(f"add {queue.name}"))
