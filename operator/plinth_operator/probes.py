"""/healthz and /metrics: whether the operator does its work, and how much of it there is."""

from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from plinth_operator.kube import Kube
from plinth_operator.queue import WorkQueue
from plinth_operator.reconcile import Reconciler
from plinth_operator.store import Key, Store
from plinth_operator.watch import Watcher

_STUCK_SECONDS = 300.0


class Probes:
    """Reads everything when it is asked; nothing is counted twice."""

    def __init__(
        self,
        kube: Kube,
        store: Store,
        queue: WorkQueue[Key],
        reconciler: Reconciler,
        watcher: Watcher,
        *,
        resync_seconds: float,
        now: Callable[[], datetime],
    ) -> None:
        """Take what the probes look at."""
        self._kube = kube
        self._store = store
        self._queue = queue
        self._reconciler = reconciler
        self._watcher = watcher
        self._patience = timedelta(seconds=3 * resync_seconds)
        self._now = now
        self._registry = CollectorRegistry()
        self._registry.register(_Operator(self))

    def problems(self) -> list[str]:
        """Why the operator should be restarted; empty while it should not."""
        problems = [f"the watch of {kind} is silent" for kind in sorted(self._watcher.silent)]
        listed = self._watcher.listed_at
        if listed is not None and self._now() - listed > self._patience:
            problems.append(f"nothing was listed since {listed:%H:%M:%S}")
        if self._queue.oldest_seconds() > _STUCK_SECONDS:
            problems.append("the queue does not move")
        return problems

    def metrics(self) -> list[Metric]:
        """The metrics as of now."""
        reconciles = CounterMetricFamily("plinth_reconciles", "Reconciles by result.", labels=["result"])
        for result, count in self._reconciler.counts.items():
            reconciles.add_metric([result], count)
        requests = CounterMetricFamily(
            "plinth_api_requests",
            "Requests to the API server by method, kind and HTTP status.",
            labels=["method", "kind", "status"],
        )
        for (method, kind, status), count in list(self._kube.requests.items()):
            requests.add_metric([method, kind, str(status)], count)
        depth = GaugeMetricFamily("plinth_queue_depth", "Resources that wait to be reconciled.", self._queue.depth())
        age = GaugeMetricFamily(
            "plinth_queue_oldest_seconds", "How long the first of them has waited.", self._queue.oldest_seconds()
        )
        resources = GaugeMetricFamily(
            "plinth_resources", "Resources by kind, phase and reason.", labels=["kind", "phase", "reason"]
        )
        gpus = GaugeMetricFamily("plinth_gpu_seconds", "GPU-seconds held by the resources that exist.", labels=["kind"])
        self._count_resources(resources, gpus)
        return [reconciles, requests, depth, age, resources, gpus]

    def _count_resources(self, resources: GaugeMetricFamily, gpus: GaugeMetricFamily) -> None:
        phases: Counter[tuple[str, str, str]] = Counter()
        seconds: Counter[str] = Counter()
        for key, resource in list(self._store.resources.items()):
            status = resource.status_document()
            phases[key.kind, status.get("phase", ""), status.get("reason", "")] += 1
            seconds[key.kind] += (status.get("usage") or {}).get("gpuSeconds", 0)
        for labels, number in phases.items():
            resources.add_metric(list(labels), number)
        for kind, total in seconds.items():
            gpus.add_metric([kind], total)

    async def serve(self, host: str, port: int) -> web.AppRunner:
        """Listen; the caller cleans the runner up."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/metrics", self._metrics)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
        return runner

    async def _healthz(self, request: web.Request) -> web.Response:
        problems = self.problems()
        return web.Response(text="; ".join(problems) or "ok", status=503 if problems else 200)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), content_type="text/plain")


class _Operator(Collector):
    def __init__(self, probes: Probes) -> None:
        self._probes = probes

    def collect(self) -> list[Metric]:
        return self._probes.metrics()
