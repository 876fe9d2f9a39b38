"""Figures for Prometheus: `GET /metrics`."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from adapterhub_cl.inference.engine import Engine
from adapterhub_cl.types import Prediction

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class ServerFigures:
    """What the server counts; each application has its own."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()

        def named(name: str, what: str, *labels: str) -> dict[str, Any]:
            return {
                "name": f"adapterhub_{name}",
                "documentation": what,
                "labelnames": labels,
                "registry": self.registry,
            }

        self.requests = Counter(**named("requests", "requests by route and status", "route", "status"))
        self.seconds = Histogram(**named("request_seconds", "time of a whole request", "route"), buckets=SECONDS)
        self.first = Histogram(**named("first_byte_seconds", "time until an answer begins", "route"), buckets=SECONDS)
        self.running = Gauge(**named("requests_running", "requests that are being answered"))
        self.answers = Counter(**named("answers", "answers by version and task", "adapter", "task"))
        self.fallbacks = Counter(**named("answers_by_base", "answers of the base to what fits no task"))
        self.tokens = Counter(**named("tokens", "tokens read and written", "kind"))
        Gauge(**named("queue", "requests that wait for the engine")).set_function(lambda: engine.waiting)
        Gauge(**named("rows_writing", "answers that are being written")).set_function(lambda: engine.writing)
        Gauge(**named("adapters_resident", "adapters in the memory of the running batch")).set_function(
            lambda: len(engine.resident)
        )

    def answered(self, answer: Prediction) -> None:
        self.answers.labels(answer.adapter, answer.task).inc()
        self.tokens.labels("prompt").inc(answer.prompt_tokens)
        self.tokens.labels("answer").inc(max(1, len(answer.tokens)))
        if answer.out_of_distribution:
            self.fallbacks.inc()

    def page(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)
