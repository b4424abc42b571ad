"""What a service counts and times: requests, tokens and waiting, for /metrics (Prometheus) and for /-/state.

Enters: the answers of the application, and the pieces of each generation as they pass. Leaves: Prometheus' text format.
Names and buckets follow vLLM (https://docs.vllm.ai/en/latest/usage/metrics.html), so that dashboards can be taken over.
Labels have values of ours only: nothing that a client writes becomes one, nor anything of a prompt.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plinth_workloads.serving.api_errors import api_error_from
from plinth_workloads.serving.choices import Deltas
from plinth_workloads.serving.engine import EngineStats, TokenDelta
from plinth_workloads.serving.version_counts import Turn

_FIRST_TOKEN_SECONDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
)
_OUTPUT_TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
_REQUEST_SECONDS = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)

_OTHER_ENDPOINT = "other"

MODEL_NAME = "model_name"
"""Under this name a request's state has the model of ours that it asks for."""

_Family = type[GaugeMetricFamily] | type[CounterMetricFamily]

_ENGINE_METRICS: tuple[tuple[_Family, str, str, Callable[[EngineStats], float]], ...] = (
    (GaugeMetricFamily, "plinth_requests_running", "Rows that are being answered.", lambda stats: stats.running),
    (GaugeMetricFamily, "plinth_requests_waiting", "Rows that wait for one to end.", lambda stats: stats.waiting),
    (
        GaugeMetricFamily,
        "plinth_kv_cache_usage_perc",
        "How much of the cache of keys and values rows in work hold, 1 for all.",
        lambda stats: stats.cache.used / max(1, stats.cache.total),
    ),
    (
        CounterMetricFamily,
        "plinth_prefix_cache_queries",
        "Tokens of prompts, which were looked for in the cache.",
        lambda stats: stats.cache.prompt_tokens,
    ),
    (
        CounterMetricFamily,
        "plinth_prefix_cache_hits",
        "Of these the tokens that were there, and were not read again.",
        lambda stats: stats.cache.reused_tokens,
    ),
)
"""What an engine says of itself when it is asked."""

_Result = TypeVar("_Result")

StatsSource = Callable[[], EngineStats | None]


@dataclass
class _Choice:
    """Where one choice of a request stands, and where its tokens are counted."""

    first_at: float
    num_first: int
    made: Counter
    num_tokens: int = 0


class ServiceMetrics:
    """The metrics of one application, in a registry of their own.

    Attributes:
        requests: Requests for a model of ours, since the start.
        errors: Of them those that ended for a reason of ours (5xx).
        tokens: Tokens made.
    """

    def __init__(self, name: str, *, stats: StatsSource, clock: Callable[[], float] = time.perf_counter) -> None:
        """Take the service's name, what tells the engine's stats (None while there is no engine), and a clock."""
        self.requests = self.errors = self.tokens = 0
        self._clock = clock
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(name, stats))
        self._answers = self._counter("plinth_requests", "Answers by endpoint and HTTP status.", "endpoint", "status")
        self._ended = self._counter(
            "plinth_request_success", "Choices that ended, by why; abort: the client went away.", "finished_reason"
        )
        self._errors = self._counter(
            "plinth_request_errors", "Generations that ended in an error, also within a stream.", "code"
        )
        self._prompt_tokens = self._counter("plinth_prompt_tokens", "Tokens of prompts that were read.")
        self._generation_tokens = self._counter("plinth_generation_tokens", "Tokens that were made.")
        self._first_token = self._histogram(
            "plinth_time_to_first_token_seconds", "From a request to the first text of a choice.", _FIRST_TOKEN_SECONDS
        )
        self._output_token = self._histogram(
            "plinth_time_per_output_token_seconds",
            "Mean time of a choice's tokens after its first text.",
            _OUTPUT_TOKEN_SECONDS,
        )
        self._latency = self._histogram(
            "plinth_e2e_request_latency_seconds", "From a request to the end of its answer.", _REQUEST_SECONDS
        )

    def render(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)

    def count_answer(self, endpoint: str, status: int, model_name: str) -> None:
        """Count an answer; `model_name` is empty for a request that named no model of ours."""
        self._answers.labels(model_name, endpoint, str(status)).inc()

    def measured(self, deltas: Deltas, *, model_name: str, num_choices: int, turn: Turn) -> Deltas:
        """The pieces of a request that begins now, counted and timed as they pass.

        Args:
            deltas: The pieces, each with the index of its choice.
            model_name: A model of ours.
            num_choices: The request's n: choices of one prompt.
            turn: The request, which tells the version that answers it.
        """
        self.requests += 1
        return self._measured(deltas, model_name, num_choices, self._clock(), turn)

    async def measured_reading(self, work: Awaitable[_Result], *, model_name: str, turn: Turn) -> _Result:
        """What a request gives that begins now and whose answer is no text, counted and timed."""
        self.requests += 1
        began = self._clock()
        with self._answering(model_name, began, turn):
            result = await work
            turn.first_text(self._clock() - began)
            return result

    def count_prompt_tokens(self, num_tokens: int, *, model_name: str) -> None:
        """Count what was read for a request whose answer is no text."""
        self._prompt_tokens.labels(model_name).inc(num_tokens)

    @contextmanager
    def _answering(self, model_name: str, began: float, turn: Turn) -> Iterator[None]:
        """Count how an answer ends, and the time of one that ends well."""
        try:
            yield
        except (GeneratorExit, asyncio.CancelledError):
            self._ended.labels(model_name, "abort").inc()
            turn.given_up(self._clock() - began)
            raise
        except Exception as error:
            answer = api_error_from(error)
            self.errors += answer.status >= 500
            (turn.failed if answer.status >= 500 else turn.ended)()
            self._errors.labels(model_name, answer.detail.code or answer.detail.type).inc()
            raise
        turn.ended()
        self._latency.labels(model_name).observe(self._clock() - began)

    async def _measured(self, deltas: Deltas, model_name: str, num_choices: int, began: float, turn: Turn) -> Deltas:
        choices: dict[int, _Choice] = {}
        with self._answering(model_name, began, turn):
            async with aclosing(deltas):
                async for index, delta in deltas:
                    if index not in choices:
                        choices[index] = self._begun(delta, model_name, began, reads_prompt=index % num_choices == 0)
                        turn.first_text(choices[index].first_at - began)
                    self._add(choices[index], delta, model_name, turn)
                    yield index, delta

    def _begun(self, delta: TokenDelta, model_name: str, began: float, *, reads_prompt: bool) -> _Choice:
        now = self._clock()
        self._first_token.labels(model_name).observe(now - began)
        if reads_prompt:
            self._prompt_tokens.labels(model_name).inc(delta.num_prompt_tokens)
        made = self._generation_tokens.labels(model_name)
        return _Choice(first_at=now, num_first=delta.num_completion_tokens, made=made)

    def _add(self, choice: _Choice, delta: TokenDelta, model_name: str, turn: Turn) -> None:
        num_new = delta.num_completion_tokens - choice.num_tokens
        choice.num_tokens = delta.num_completion_tokens
        self.tokens += num_new
        choice.made.inc(num_new)
        if delta.finish_reason is None:
            return
        self._ended.labels(model_name, delta.finish_reason).inc()
        num_later = choice.num_tokens - choice.num_first
        if num_later:
            seconds_each = (self._clock() - choice.first_at) / num_later
            self._output_token.labels(model_name).observe(seconds_each)
            turn.later_tokens(seconds_each)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, ["model_name", *labels], registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, ["model_name"], buckets=buckets, registry=self._registry)


class _EngineCollector(Collector):
    def __init__(self, name: str, stats: StatsSource) -> None:
        self._name, self._stats = name, stats

    def describe(self) -> Iterable[Metric]:
        # Registering would ask the engine for the names else, and there is none yet.
        return [family(name, text) for family, name, text, _ in _ENGINE_METRICS]

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        if stats is None:
            return
        for family, name, text, value in _ENGINE_METRICS:
            metric = family(name, text, labels=["model_name"])
            metric.add_metric([self._name], value(stats))
            yield metric


class CountAnswers:
    """ASGI middleware that counts answers by endpoint and status."""

    def __init__(
        self, app: ASGIApp, *, metrics: ServiceMetrics, endpoints: Iterable[str], unseen: Iterable[str]
    ) -> None:
        """Take the application, the paths that are counted by name, and those that are not counted at all."""
        self._app, self._metrics = app, metrics
        self._endpoints, self._unseen = frozenset(endpoints), frozenset(unseen)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count its answer."""
        if scope["type"] != "http" or scope["path"] in self._unseen:
            await self._app(scope, receive, send)
            return
        known = scope.setdefault("state", {})

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                # A request that is refused before its route is found has a path only.
                path = getattr(scope.get("route"), "path", scope["path"])
                endpoint = path if path in self._endpoints else _OTHER_ENDPOINT
                self._metrics.count_answer(endpoint, message["status"], known.get(MODEL_NAME, ""))
            await send(message)

        await self._app(scope, receive, send_counted)
