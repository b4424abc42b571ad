"""How fast, how light and how quiet the operator is, on the real API server with the real KubeRay and a real MLflow.

`make bench-operator` runs all of it and writes `results/reconcile-cpu.json`; `--short` is a tenth of everything, to see
whether the benchmark still works. There are no nodes: KubeRay makes its clusters and pods, and the pods stay Pending.
The issue's names for what is measured: one at a time, all at once, quiet, churn, restart, beside KubeRay.
"""

import argparse
import asyncio
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bounds import table
from cluster.control_plane import ControlPlane
from makers import pretrain_document
from observation import Cluster, Sightings, counters, cpu_seconds, growth, resident_bytes, until
from operators import OperatorProcess
from record import write_record
from servers import MlflowServer

_CLAIMS = ("corpora", "checkpoints")
_JOBS = "/apis/plinth.dev/v1alpha1/namespaces/{}/pretrainjobs"
_RAY = "/apis/ray.io/v1"
_MEGABYTE = 1e6
_PACKAGES = ("kopf", "kubernetes", "aiohttp", "pydantic", "mlflow")
_WRITES = ("POST", "PUT", "PATCH", "DELETE")


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    singles: int = 200
    burst: int = 1000
    by_hand: int = 100
    quiet_seconds: float = 300.0
    churn_seconds: float = 600.0
    churn_per_second: float = 2.0


SHORT = Sizes(singles=20, burst=100, by_hand=20, quiet_seconds=20.0, churn_seconds=30.0)


@dataclass
class Bench:
    """What the phases share."""

    plane: ControlPlane
    cluster: Cluster
    operator: OperatorProcess
    mlflow: MlflowServer
    sizes: Sizes
    resources: Sightings = field(default_factory=Sightings)
    ray_jobs: Sightings = field(default_factory=Sightings)
    ray_clusters: Sightings = field(default_factory=Sightings)
    pods: Sightings = field(default_factory=Sightings)

    @property
    def pid(self) -> int:
        """The operator's process."""
        assert self.operator.process is not None
        return self.operator.process.pid

    def namespace(self, name: str) -> str:
        """A namespace with the claims of the jobs in it."""
        self.plane.create_namespace(name)
        self.plane.apply([_claim(claim) for claim in _CLAIMS], name)
        return name

    def cpu(self) -> dict[str, float]:
        """Processor time of everybody so far, in seconds."""
        used = {name: cpu_seconds(pid) for name, pid in self.plane.pids().items()}
        mlflow = sum(cpu_seconds(pid) for pid in self.mlflow.pids())
        return {"plinth-operator": cpu_seconds(self.pid), "mlflow": mlflow, "benchmark": time.process_time(), **used}

    def requests(self) -> dict[str, float]:
        """What the operator has asked of the API server so far; the leader's Lease is not in it."""
        return counters(self.operator.get("/metrics"), "plinth_api_requests_total")

    def writes_since(self, before: Mapping[str, float]) -> dict[str, float]:
        """Writes by method, kind and status."""
        grown = growth(before, self.requests())
        return {labels: count for labels, count in grown.items() if any(f'"{verb}"' in labels for verb in _WRITES)}


def job(name: str) -> dict[str, Any]:
    """A small PretrainJob of one worker."""
    data = {"train": [{"uri": "pvc://corpora/corpus.jsonl"}], "validation": {"fraction": 0.1}}
    return pretrain_document(name=name, data=data, checkpoint={"uri": f"pvc://checkpoints/{name}"})


async def one_at_a_time(bench: Bench) -> dict[str, Any]:
    """CR created -> its RayJob seen, with MLflow run, ConfigMap and NetworkPolicy made before it."""
    space, latencies = bench.namespace("singles"), []
    before = bench.requests()
    for number in range(bench.sizes.singles):
        name = f"single-{number:04}"
        started = time.monotonic()
        made = await bench.cluster.request("POST", _JOBS.format(space), job(name))
        ray_job = _ray_job_name(made)
        await until(lambda ray_job=ray_job: ray_job in bench.ray_jobs.first, 30, ray_job)
        latencies.append(bench.ray_jobs.first[ray_job] - started)
        # As a user's jobs come: KubeRay is done with one before the next.
        await asyncio.sleep(0.5)
    await _settle(bench)
    writes = bench.writes_since(before)
    return {
        "cr_to_rayjob_seconds": percentiles(latencies),
        "writes_a_cr_by_kind": {labels: count / bench.sizes.singles for labels, count in writes.items()},
    }


async def all_at_once(bench: Bench) -> dict[str, Any]:
    """Many CRs as fast as the API server takes them -> the last RayJob seen; what it costs."""
    space, count = bench.namespace("burst"), bench.sizes.burst
    before, cpu, reconciles = bench.requests(), bench.cpu(), _reconciled(bench.operator)
    started = time.monotonic()
    seen = len(bench.ray_jobs.first)
    await bench.cluster.create_all(_JOBS.format(space), [job(f"burst-{number:04}") for number in range(count)])
    created = time.monotonic()
    await until(lambda: len(bench.ray_jobs.first) >= seen + count, 600, f"{count} RayJobs")
    last = max(bench.ray_jobs.first.values())
    cpu_ray_jobs = bench.cpu()
    clusters = await until(lambda: len(bench.ray_clusters.there) >= len(bench.ray_jobs.there), 1200, "RayClusters")
    await until(lambda: len(bench.pods.there) >= 2 * len(bench.ray_jobs.there), 1200, "pods")
    await _settle(bench)
    writes = bench.writes_since(before)
    return {
        "resources": count,
        "seconds_to_create_the_crs": round(created - started, 2),
        "first_cr_to_last_rayjob_seconds": round(last - started, 2),
        "first_cr_to_last_raycluster_seconds": round(clusters - started, 2),
        "cpu_milliseconds_a_cr_until_rayjobs": _per_resource(cpu, cpu_ray_jobs, count),
        "cpu_milliseconds_a_cr_until_settled": _per_resource(cpu, bench.cpu(), count),
        "writes_a_cr_until_rayjob": _writes_until_ray_job(bench, writes, count),
        "reconciles_a_cr": round((_reconciled(bench.operator) - reconciles) / count, 2),
        "writes_a_cr_by_kind": {labels: number / count for labels, number in writes.items()},
        "objects": {
            "rayJobs": len(bench.ray_jobs.there),
            "rayClusters": len(bench.ray_clusters.there),
            "pods": len(bench.pods.there),
        },
        "operator_megabytes": _megabytes(bench.pid),
    }


async def quiet(bench: Bench) -> dict[str, Any]:
    """Nothing changes: no write at all, and what the waiting costs."""
    before, cpu = bench.requests(), cpu_seconds(bench.pid)
    await asyncio.sleep(bench.sizes.quiet_seconds)
    return {
        "seconds": bench.sizes.quiet_seconds,
        "write_count": sum(bench.writes_since(before).values()),
        "writes": bench.writes_since(before),
        "operator_cpu_percent": round(100 * (cpu_seconds(bench.pid) - cpu) / bench.sizes.quiet_seconds, 2),
        "operator_megabytes": _megabytes(bench.pid),
    }


async def churn(bench: Bench) -> dict[str, Any]:
    """CRs come and go at a steady rate beside those that stay; memory by time."""
    space, samples, live, number = bench.namespace("churn"), [], [], 0
    started = time.monotonic()
    while (age := time.monotonic() - started) < bench.sizes.churn_seconds:
        name = f"churn-{number:05}"
        await bench.cluster.request("POST", _JOBS.format(space), job(name))
        live.append(name)
        if len(live) > 20:
            await bench.cluster.request("DELETE", f"{_JOBS.format(space)}/{live.pop(0)}")
        if number % 10 == 0:
            samples.append((age, resident_bytes(bench.pid) / _MEGABYTE))
        number += 1
        await asyncio.sleep(max(0.0, number / bench.sizes.churn_per_second - (time.monotonic() - started)))
    for name in live:
        await bench.cluster.request("DELETE", f"{_JOBS.format(space)}/{name}")
    # The first part fills what a process keeps for later use.
    late = [sample for sample in samples if sample[0] > bench.sizes.churn_seconds / 5]
    slope = statistics.linear_regression(*zip(*late, strict=True)).slope if len(late) > 1 else 0.0
    return {
        "resources": number,
        "seconds": round(time.monotonic() - started, 1),
        "megabytes_a_minute": round(60 * slope, 3),
        "megabytes_first_last": [round(samples[0][1], 1), round(samples[-1][1], 1)],
        "operator_megabytes": _megabytes(bench.pid),
    }


async def restart(bench: Bench) -> dict[str, Any]:
    """SIGTERM to exit; start to every resource reconciled once; what it writes in that time."""
    count = len(bench.ray_jobs.there)
    exit_seconds = await asyncio.to_thread(bench.operator.stop)
    started = time.monotonic()
    bench.operator.start()
    done = await until(lambda: _reconciled(bench.operator) >= count, 120, f"{count} reconciles")
    await asyncio.sleep(5)
    return {
        "resources": count,
        "sigterm_to_exit_seconds": round(exit_seconds, 2),
        "start_to_all_reconciled_seconds": round(done - started, 2),
        "write_count": sum(bench.writes_since({}).values()),
        "writes": bench.writes_since({}),
        "operator_megabytes": _megabytes(bench.pid),
    }


async def beside_kuberay(bench: Bench) -> dict[str, Any]:
    """The same RayJobs applied by hand, one at a time: KubeRay's own time from RayJob to RayCluster, beside ours."""
    space = bench.namespace("by-hand")
    listed = await bench.cluster.request("GET", f"{_RAY}/namespaces/singles/rayjobs?limit=1")
    pattern = listed["items"][0]
    by_hand, ours, whole = [], [], []
    for number in range(bench.sizes.by_hand):
        # Taking turns, so that the machine's moods meet both alike.
        document = copy.deepcopy({key: pattern[key] for key in ("apiVersion", "kind", "spec")})
        name = f"by-hand-{number:04}"
        document["metadata"] = {"name": name, "namespace": space}
        started = time.monotonic()
        await bench.cluster.request("POST", f"{_RAY}/namespaces/{space}/rayjobs", document)
        by_hand.append(await _cluster_of(bench, name) - started)
        await asyncio.sleep(0.5)
        started = time.monotonic()
        made = await bench.cluster.request("POST", _JOBS.format("singles"), job(f"beside-{number:04}"))
        ray_job = _ray_job_name(made)
        whole.append(await _cluster_of(bench, ray_job) - started)
        ours.append(bench.ray_jobs.first[ray_job] - started)
        await asyncio.sleep(0.5)
    return {
        "kuberay_alone_rayjob_to_raycluster_seconds": percentiles(by_hand),
        "plinth_cr_to_rayjob_seconds": percentiles(ours),
        "plinth_cr_to_raycluster_seconds": percentiles(whole),
        "ratio_of_medians_cr_to_raycluster_over_kuberay_alone": round(
            statistics.median(whole) / statistics.median(by_hand), 2
        ),
    }


async def _cluster_of(bench: Bench, ray_job: str) -> float:
    """When the RayCluster of a RayJob was seen: KubeRay names it for its RayJob and adds five letters."""

    def found() -> list[float]:
        return [seen for name, seen in bench.ray_clusters.first.items() if name[:-6] == ray_job]

    await until(lambda: bool(found()), 60, f"the RayCluster of {ray_job}")
    return min(found())


async def _settle(bench: Bench) -> None:
    """Wait until the operator writes no more."""
    while True:
        before = bench.requests()
        await asyncio.sleep(5)
        if not bench.writes_since(before):
            return


def _per_resource(before: Mapping[str, float], after: Mapping[str, float], count: int) -> dict[str, float]:
    return {name: round(1000 * (after[name] - used) / count, 1) for name, used in before.items()}


def _writes_until_ray_job(bench: Bench, writes: Mapping[str, float], count: int) -> float:
    """Children that were written, and status patches that came before the RayJob, a CR."""
    children = sum(number for labels, number in writes.items() if "/status" not in labels and "Event" not in labels)
    patches = 0
    for ray_job, versions in bench.ray_jobs.versions.items():
        # The first version of a CR is its creation.
        changes = bench.resources.versions.get(ray_job.rsplit("-", 2)[0], [])[1:]
        patches += sum(version < versions[0] for version in changes)
    return round((children + patches) / count, 3)


def _reconciled(operator: OperatorProcess) -> float:
    try:
        return counters(operator.get("/metrics"), "plinth_reconciles_total").get('{result="done"}', 0.0)
    except OSError:
        return 0.0


def percentiles(seconds: list[float]) -> dict[str, float]:
    """p50, p99, the worst, and how many."""
    ordered = sorted(seconds)
    cut = statistics.quantiles(ordered, n=100, method="inclusive")
    return {
        "p50": round(cut[49], 4),
        "p99": round(cut[98], 4),
        "max": round(ordered[-1], 4),
        "count": len(ordered),
    }


def _megabytes(pid: int) -> dict[str, float]:
    return {
        "resident": round(resident_bytes(pid) / _MEGABYTE, 1),
        "peak": round(resident_bytes(pid, "VmHWM") / _MEGABYTE, 1),
    }


def _ray_job_name(made: Mapping[str, Any]) -> str:
    return f"{made['metadata']['name']}-{made['metadata']['uid'][:5]}-1"


def _claim(name: str) -> dict[str, Any]:
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


PHASES = (one_at_a_time, beside_kuberay, all_at_once, quiet, restart, churn)


async def measure(
    plane: ControlPlane, operator: OperatorProcess, mlflow: MlflowServer, sizes: Sizes, phases: Sequence[str]
) -> dict[str, Any]:
    """Every phase in its order, with a line when it begins and when it has ended."""
    figures: dict[str, Any] = {}
    async with Cluster(plane.url, plane.token, plane.certificate) as cluster:
        bench = Bench(plane, cluster, operator, mlflow, sizes)
        bench.resources = await cluster.watch("/apis/plinth.dev/v1alpha1/pretrainjobs")
        bench.ray_jobs = await cluster.watch(f"{_RAY}/rayjobs")
        bench.ray_clusters = await cluster.watch(f"{_RAY}/rayclusters")
        bench.pods = await cluster.watch("/api/v1/pods")
        await until(lambda: "idle" in _state(operator), 60, "the operator")
        figures["empty"] = {"operator_megabytes": _megabytes(bench.pid)}
        for phase in (phase for phase in PHASES if not phases or phase.__name__ in phases):
            sys.stdout.write(f"{phase.__name__} …\n")
            sys.stdout.flush()
            started = time.monotonic()
            figures[phase.__name__] = await phase(bench)
            sys.stdout.write(f"{time.monotonic() - started:.0f} s {json.dumps(figures[phase.__name__], indent=1)}\n")
    return figures


def _state(operator: OperatorProcess) -> str:
    try:
        return "idle" if operator.get("/healthz") == "ok" and "leading as" in operator.log.read_text() else ""
    except OSError:
        return ""


def main() -> int:
    """Measure, write the record, print the table; 1 where a figure misses its bound."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a tenth of everything, and no record")
    names = [phase.__name__ for phase in PHASES]
    parser.add_argument("--phase", action="append", choices=names, help="only this one, and no record; repeatable")
    options = parser.parse_args()
    sizes = SHORT if options.short else Sizes()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plinth-bench-")))
        plane = stack.enter_context(ControlPlane(folder / "plane", kuberay=True, hurried=False))
        (folder / "mlflow").mkdir()
        mlflow = MlflowServer(folder / "mlflow")
        stack.callback(mlflow.stop)
        mlflow.start()
        operator = OperatorProcess(folder, plane.kubeconfig, mlflow.uri, lease_seconds="15")
        stack.callback(operator.kill)
        operator.start()
        figures = asyncio.run(measure(plane, operator, mlflow, sizes, options.phase or ()))
    if options.phase:
        return 0
    text, kept = table(figures)
    sys.stdout.write(f"{text}\n")
    if options.short:
        return 0
    write_record("reconcile", torch.device("cpu"), vars(sizes), figures, packages=_PACKAGES, has_own_load=True)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
