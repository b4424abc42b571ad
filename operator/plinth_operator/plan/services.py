"""What to do about a ModelService: from the resource and what is observed to writes and a status. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from plinth_api.errors import InvalidSpec
from plinth_api.lenient import read_leniently
from plinth_api.model_service import ModelService
from plinth_api.parse import parse_resource
from plinth_api.resolve import referenced_aliases, resolve_serve_run
from plinth_api.run import ServeModel
from plinth_api.status import RolloutStatus, ServiceStatus
from plinth_operator.constants import CLUSTER_HASH_ANNOTATION
from plinth_operator.facts import Manifest, ObjectFacts, Observed, RayServiceFacts
from plinth_operator.plan.acceptance import invalid_spec_cause
from plinth_operator.plan.access import serve_service_name
from plinth_operator.plan.children import service_children
from plinth_operator.plan.drift import differs
from plinth_operator.plan.existence import missing_cause
from plinth_operator.plan.plan import Plan
from plinth_operator.plan.raycluster import build_ray_cluster_spec
from plinth_operator.plan.refusals import steady_cause
from plinth_operator.plan.rollout import TICK_SECONDS, plan_rollout
from plinth_operator.plan.run_config import resolve_settings_for
from plinth_operator.settings import Settings
from plinth_operator.status.reasons import Cause
from plinth_operator.status.scaled_to_zero import at_zero, with_load_progress
from plinth_operator.status.services import ServiceVerdict, build_service_status, service_verdict, with_rollout

_ALIAS_SECONDS = 30.0
"""How often an alias is looked up: a new version is taken over within this time."""


@dataclass(frozen=True, slots=True)
class _Look:
    service: ModelService
    old: ServiceStatus
    seen: Observed
    settings: Settings
    now: datetime
    refusal: Cause | None = None


def plan_service(
    document: Manifest, seen: Observed, *, settings: Settings, now: datetime, refusal: Cause | None = None
) -> Plan:
    """The plan for a service; arguments as in `plan_job`."""
    old = read_leniently(ServiceStatus, document.get("status") or {}) or ServiceStatus()
    generation = document["metadata"]["generation"]
    try:
        service = parse_resource({**document, "status": None})
        assert isinstance(service, ModelService)
        resolve_serve_run(service, resolve_settings_for(service, settings, None), {})
        build_ray_cluster_spec(service, settings=settings)
    except InvalidSpec as error:
        verdict = _refused(seen, ServeModel(uri=old.model.uri if old.model else ""), invalid_spec_cause(error))
        gpus = (old.usage.gpus if old.usage else None) or 0
        status = build_service_status(old, verdict, generation=generation, gpus=gpus, rollout=old.rollout, now=now)
        return Plan(status=status)
    look = _Look(service, old, seen, settings, now, refusal)
    base = resolve_settings_for(service, settings, None)
    aliases = referenced_aliases(service, base.registry_prefix)
    versions = _known_versions(look, aliases)
    held = missing_cause(service, seen, aliases, versions, settings)
    if held is not None:
        plan = _report(look, _refused(seen, ServeModel(uri=old.model.uri if old.model else ""), held), old.rollout)
        return replace(plan, want_versions=aliases, requeue_seconds=10.0)
    missing = tuple(uri for uri in aliases if uri not in versions)
    if missing:
        cause = Cause("TrackingUnavailable", seen.tracking_error) if seen.tracking_error else None
        return replace(_report(look, ServiceVerdict("Pending", cause), old.rollout), want_versions=missing)
    run = resolve_serve_run(service, base, versions)
    model, rollout = plan_rollout(service.spec.rollout.canary, run.model, old, seen, generation=generation, now=now)
    run = run.model_copy(update={"model": model})
    plan = _converge(look, service_children(service, run, settings=settings), model, rollout)
    seconds = TICK_SECONDS if model.candidate else _ALIAS_SECONDS if aliases else None
    return replace(plan, want_versions=aliases, requeue_seconds=seconds)


def _known_versions(look: _Look, aliases: tuple[str, ...]) -> Mapping[str, str]:
    """What MLflow has said, else the version that is in use: MLflow being away stops no service that runs.

    A version that is tried, or was, is what MLflow had said last.
    """
    known = {uri: look.seen.versions[uri] for uri in aliases if uri in look.seen.versions}
    used = [look.old.rollout.candidate.uri] if look.old.rollout else []
    used += [look.old.model.uri] if look.old.model else []
    used += [adapter.uri for adapter in look.old.adapters or ()]
    for uri in aliases:
        before = next((one for one in used if one.startswith(f"{uri.split('@')[0]}/")), None)
        if not known.get(uri) and before is not None and look.seen.ray_services:
            known[uri] = before
    return known


def _converge(look: _Look, wanted: tuple[Manifest, ...], target: ServeModel, rollout: RolloutStatus | None) -> Plan:
    existing = look.seen.ray_services[0] if look.seen.ray_services else None
    known: dict[tuple[str, str], ObjectFacts] = {(facts.kind, facts.name): facts for facts in look.seen.children}
    children: list[Manifest] = []
    deletions: list[ObjectFacts] = []
    for manifest in wanted:
        if manifest["kind"] == "RayService":
            changed, gone = _ray_service_change(look, existing, manifest)
            children += changed
            deletions += gone
        elif differs(known.get((manifest["kind"], manifest["metadata"]["name"])), manifest):
            children.append(manifest)
    names = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in wanted}
    deletions += [facts for identity, facts in known.items() if _is_ours(facts) and identity not in names]
    pods = look.seen.pods
    verdict = service_verdict(existing, pods, look.seen.ray_clusters, look.seen.replica, target, bool(deletions))
    verdict = with_load_progress(with_rollout(verdict, rollout), look.seen.replica)
    if look.service.spec.scaling.min_replicas == 0:
        verdict = at_zero(verdict, existing, look.seen.replica, target, look.old.model)
    if children and look.refusal is not None:
        cause = steady_cause(look.refusal, look.old, look.service.metadata.generation)
        verdict = _refused(look.seen, target, cause)
    return replace(_report(look, verdict, rollout), children=tuple(children), deletions=tuple(deletions))


def _refused(seen: Observed, target: ServeModel, cause: Cause) -> ServiceVerdict:
    """Where a service stands whose spec, or what was made of it, is refused: what serves already goes on serving."""
    is_invalid = cause.reason == "InvalidSpec"
    if not seen.ray_services:
        return ServiceVerdict("Failed" if is_invalid else "Pending", cause, accepted=not is_invalid)
    now = service_verdict(seen.ray_services[0], seen.pods, seen.ray_clusters, seen.replica, target, replacing=False)
    return replace(now, phase="Degraded", cause=cause, accepted=not is_invalid)


def _is_ours(facts: ObjectFacts) -> bool:
    """Whether we made the object; the Services of KubeRay carry our labels, not our hash."""
    return bool(facts.hash) and not facts.deleting


def _ray_service_change(
    look: _Look, existing: RayServiceFacts | None, wanted: Manifest
) -> tuple[list[Manifest], list[ObjectFacts]]:
    """What to apply and what to delete so that the RayService becomes what is wanted."""
    if existing is None:
        return [wanted], []
    if existing.deleting:
        return [], []
    if not differs(existing, wanted):
        return [], []
    cluster_changes = existing.cluster_hash != wanted["metadata"]["annotations"][CLUSTER_HASH_ANNOTATION]
    if cluster_changes and look.service.spec.rollout.cluster_change == "Recreate":
        return [], [existing]
    config = wanted["spec"]["serveConfigV2"]
    if cluster_changes and existing.serve_config not in ("", config):
        # One at a time: KubeRay may lose the second change (https://github.com/ray-project/kuberay/issues/3423).
        first: dict[str, Any] = {**wanted, "spec": {**wanted["spec"], "serveConfigV2": existing.serve_config}}
        return [first], []
    if existing.active is not None and existing.pending is not None and existing.serve_config != config:
        return [], []
    return [wanted], []


def _report(look: _Look, verdict: ServiceVerdict, rollout: RolloutStatus | None) -> Plan:
    spec, generation = look.service.spec, look.service.metadata.generation or 1
    host = spec.access.ingress.host if spec.access.ingress else None
    inside = f"http://{serve_service_name(look.service.metadata.name)}.{look.service.metadata.namespace}.svc:8000"
    status = build_service_status(
        look.old,
        verdict,
        generation=generation,
        url=(f"https://{host}" if spec.access.ingress and spec.access.ingress.tls_secret_ref else f"http://{host}")
        if host
        else inside,
        gpus=spec.compute.per_replica.gpus * spec.scaling.min_replicas,
        rollout=rollout,
        now=look.now,
    )
    return Plan(status=status)
