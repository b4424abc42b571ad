"""The status of a service: ready only if a real request would be answered by the version that is asked for. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from plinth_api.base import Condition
from plinth_api.run import ServeModel
from plinth_api.status import AdapterStatus, ModelStatus, RolloutStatus, ServicePhase, ServiceStatus, Usage
from plinth_operator.facts import PodFacts, RayClusterFacts, RayServiceFacts, ReplicaState
from plinth_operator.status.causes import service_cause
from plinth_operator.status.conditions import MOST_CHARACTERS, kstatus_conditions, set_condition
from plinth_operator.status.reasons import Cause
from plinth_operator.status.rollout import rollout_conditions


@dataclass(frozen=True, slots=True)
class ServiceVerdict:
    """Where a service stands.

    Attributes:
        phase: The phase to show.
        cause: Why it is no further; None where all is as it should be.
        model_uri: The version that answers requests; empty while none does.
        adapters: Name and URI of each adapter that answers beside it.
        prompt_hash: With which beginning of chats; empty for none.
        replicas: Worker pods there are, and of them ready.
        change: What a change of the cluster that is under way takes; empty where there is none.
        answering: Whether a request would be answered now.
        accepted: Whether the spec can be carried out.
    """

    phase: ServicePhase
    cause: Cause | None
    model_uri: str = ""
    adapters: tuple[tuple[str, str], ...] = ()
    prompt_hash: str = ""
    replicas: tuple[int, int] = (0, 0)
    change: str = ""
    answering: bool = False
    accepted: bool = True


def service_verdict(
    ray_service: RayServiceFacts | None,
    pods: Sequence[PodFacts],
    clusters: Sequence[RayClusterFacts],
    replica: ReplicaState | None,
    target: ServeModel,
    replacing: bool,
) -> ServiceVerdict:
    """Where a service stands whose objects are made.

    Args:
        ray_service: The RayService; None where it is yet to be made.
        pods: Its pods, of all its clusters.
        clusters: Its clusters.
        replica: What a replica last said of itself.
        target: The version that is asked for.
        replacing: Whether the RayService is deleted to make room for another.
    """
    if ray_service is None or replacing:
        return ServiceVerdict("Updating" if replacing else "Starting", None)
    workers = [pod for pod in pods if pod.role == "worker"]
    replicas = (len(workers), sum(pod.ready for pod in workers))
    cause = service_cause(ray_service, pods, clusters, replica)
    answering = ray_service.ready and replica is not None and bool(replica.model_uri)
    used, prompt = (replica.model_uri, replica.prompt_hash) if replica else ("", "")
    if replica is not None and replica.held and cause is None:
        return ServiceVerdict("Updating", None, replicas=replicas, change=replica.held)
    adapters = replica.adapters if replica else ()
    change = ""
    if ray_service.pending is not None and ray_service.active is not None:
        change = "a second cluster is started beside the one that answers: until then twice the machines are held"
    if not answering:
        answered = replica is not None or ray_service.ready_reason == "ZeroServeEndpoints"
        phase: ServicePhase = "Degraded" if answered and cause else "Starting"
        if cause is not None and cause.reason == "RayServiceInvalid" and not answered:
            phase = "Failed"
        return ServiceVerdict(phase, cause, used, adapters, prompt, replicas=replicas, change=change)
    phase = "Degraded" if cause else "Ready"
    wanted = {(adapter.name, adapter.uri) for adapter in target.adapters}
    if change or (used, prompt) != (target.uri, target.prompt_hash) or (set(adapters) != wanted and not cause):
        phase = "Updating"
    return ServiceVerdict(phase, cause, used, adapters, prompt, replicas=replicas, change=change, answering=True)


def with_rollout(verdict: ServiceVerdict, rollout: RolloutStatus | None) -> ServiceVerdict:
    """Where a service stands whose new version is on its way, or was taken back: it answers well in both cases."""
    if rollout is None or verdict.cause is not None or rollout.phase == "Promoted":
        return verdict
    progresses = verdict.phase == "Ready" and rollout.phase == "Progressing"
    told = "; ".join(words for words in (verdict.change, rollout.message) if words)
    return replace(verdict, phase="Updating" if progresses else verdict.phase, change=told)


def build_service_status(
    old: ServiceStatus,
    verdict: ServiceVerdict,
    *,
    generation: int,
    url: str = "",
    gpus: int = 0,
    rollout: RolloutStatus | None = None,
    now: datetime,
) -> dict[str, Any]:
    """The new status in wire form.

    Args:
        old: The status as it stands.
        verdict: Where the service stands.
        generation: Generation of the spec that this speaks of.
        url: Where the service answers.
        gpus: GPUs of the replicas that it keeps at least.
        rollout: Of a new version, where the spec asks for one.
        now: The time.
    """
    cause, phase = verdict.cause, verdict.phase
    reason, message = (cause.reason, cause.message) if cause else (phase, verdict.change)
    total, ready = verdict.replicas
    status = ServiceStatus(
        observed_generation=generation,
        phase=phase,
        reason=cause.reason if cause else "",
        message=message[:MOST_CHARACTERS],
        conditions=_conditions(old, verdict, reason, message, rollout=rollout, generation=generation, now=now),
        url=url or old.url,
        model=_model(verdict.model_uri, verdict.prompt_hash) or old.model,
        adapters=_adapters(verdict) if verdict.model_uri else old.adapters,
        rollout=rollout,
        replicas=total,
        ready_replicas=ready,
        usage=Usage(gpus=gpus),
    )
    return status.to_wire()


def _conditions(
    old: ServiceStatus,
    verdict: ServiceVerdict,
    reason: str,
    message: str,
    *,
    rollout: RolloutStatus | None,
    generation: int,
    now: datetime,
) -> tuple[Condition, ...]:
    conditions = set_condition(
        old.conditions,
        "Accepted",
        "True" if verdict.accepted else "False",
        "Accepted" if verdict.accepted else reason,
        "the spec can be carried out" if verdict.accepted else message,
        now=now,
        generation=generation,
    )
    conditions = set_condition(
        conditions,
        "Updating",
        "True" if verdict.phase == "Updating" else "False",
        reason,
        message,
        now=now,
        generation=generation,
    )
    conditions = rollout_conditions(conditions, rollout, now=now, generation=generation)
    return kstatus_conditions(
        conditions, verdict.phase, reason, message, now=now, generation=generation, ready=verdict.answering
    )


def _adapters(verdict: ServiceVerdict) -> tuple[AdapterStatus, ...] | None:
    return tuple(AdapterStatus(name=name, uri=uri) for name, uri in verdict.adapters) or None


def _model(uri: str, prompt_hash: str) -> ModelStatus | None:
    if not uri:
        return None
    name, _, version = uri.split(":", 1)[1].strip("/").rpartition("/" if uri.startswith("models:") else "@")
    return ModelStatus(name=name or version, version=version if name else "", uri=uri, prompt_hash=prompt_hash or None)
