"""A spec that cannot be carried out, at every point of a resource's life, and what an older one still does."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from makers import pretrain_document, service_document
from plinth_api.errors import InvalidSpec, Problem
from plinth_operator.facts import ClaimFacts, Observed, RayJobFacts, RayServiceFacts, ReplicaState, RunFacts
from plinth_operator.plan.acceptance import invalid_spec_cause
from plinth_operator.plan.jobs import plan_job
from plinth_operator.plan.plan import Plan
from plinth_operator.plan.services import plan_service
from plinth_operator.status.reasons import Cause
from rendering import SETTINGS, UID

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
CLAIM = ClaimFacts("PersistentVolumeClaim", "team-a", "plinth", "c", "", 1, access_modes=("ReadWriteMany",))
SEEN = Observed(claims={"plinth": CLAIM}, run=RunFacts("r1", "1", status="RUNNING", read_at=T0))
RAY_JOB = RayJobFacts("RayJob", "team-a", "tiny-abcde-1", "j1", UID, 1, attempt=1, created_at=T0, started_at=T0)
ATTEMPT = {"number": 1, "rayJob": "tiny-abcde-1", "startedAt": "2026-03-01T12:00:00Z"}
SUSPENDED = {**ATTEMPT, "finishedAt": "2026-03-01T12:00:10Z", "outcome": "Suspended"}
NOT_DIVISIBLE: dict[str, Any] = {"training": {"globalBatchSize": 7}, "compute": {"workers": 2}}
REMOVED_FIELD: dict[str, Any] = {"training": {"removed": 1}}
NO_SUCH_FIELD = Cause("InvalidSpec", "spec.compute.podTemplate.spec.x: is no field of a pod template")


def plan(seen: Observed, status: dict[str, Any] | None = None, *, refusal: Cause | None = None, **spec: Any) -> Plan:
    document = pretrain_document(namespace="team-a", uid=UID, **spec)
    document["metadata"]["generation"] = 3
    document["status"] = status or {}
    now = T0 + timedelta(seconds=60)
    found = plan_job(document, seen, settings=SETTINGS, now=now, refusal=refusal)
    again = plan_job({**document, "status": found.status}, seen, settings=SETTINGS, now=now, refusal=refusal)
    assert again.status == found.status
    return found


def condition(found: Plan, kind: str = "Accepted") -> tuple[str, str]:
    (one,) = (one for one in found.status["conditions"] if one["type"] == kind)
    return one["status"], one["reason"]


def test_many_problems_are_told_in_a_sentence_of_bounded_length():
    cause = invalid_spec_cause(InvalidSpec(*(Problem(f"spec.a[{i}]", "x" * 5000) for i in range(40))))
    assert cause.message.startswith("spec.a[0]: xxx")
    assert cause.message.endswith("; and 30 more, which plinth validate names")
    assert len(cause.message) < 32768


def test_a_spec_that_is_wrong_in_very_many_places_is_still_reported():
    sources = [{"uri": f"file://{i}/{'x' * 1000}"} for i in range(64)]
    found = plan(SEEN, data={"train": sources, "validation": {"fraction": None, "sources": sources}})
    assert (found.status["phase"], found.status["reason"]) == ("Failed", "InvalidSpec")
    assert found.status["message"].startswith("spec.data.train[0].uri")


def test_a_message_without_a_bound_is_cut_to_what_a_status_takes():
    found = plan(SEEN, refusal=Cause("ObjectRefused", "x" * 100_000))
    assert len(found.status["message"]) == 32768


def test_a_spec_that_was_spoilt_while_suspended_holds_the_next_attempt_until_it_is_mended():
    status = {"phase": "Suspended", "attempts": [SUSPENDED]}
    found = plan(SEEN, status, **NOT_DIVISIBLE)
    assert (found.status["phase"], found.status["reason"]) == ("Pending", "InvalidSpec")
    assert "spec.training.globalBatchSize" in found.status["message"]
    assert (condition(found), found.children) == (("False", "InvalidSpec"), ())
    mended = plan(SEEN, found.status)
    assert [child["kind"] for child in mended.children] == ["ConfigMap", "NetworkPolicy", "RayJob"]
    assert condition(mended) == ("True", "Accepted")


def test_a_running_attempt_is_watched_to_its_end_although_its_spec_cannot_be_read_any_more():
    status = {"phase": "Training", "attempts": [ATTEMPT]}
    running = replace(RAY_JOB, deployment_status="Running", job_status="RUNNING", suspended=False)
    found = plan(replace(SEEN, ray_jobs=(running,)), status, **REMOVED_FIELD)
    assert (found.status["phase"], found.status["reason"]) == ("Starting", "InvalidSpec")
    assert "spec.training.removed" in found.status["message"]
    assert found.deletions == ()
    ended = replace(RAY_JOB, deployment_status="Complete", job_status="SUCCEEDED", ended_at=T0 + timedelta(seconds=50))
    record = replace(SEEN.run, status="FINISHED", read_at=T0 + timedelta(seconds=55))
    found = plan(replace(SEEN, ray_jobs=(ended,), run=record), status, **REMOVED_FIELD)
    assert (found.status["phase"], found.status.get("reason")) == ("Succeeded", "")


def test_an_attempt_whose_spec_cannot_be_read_any_more_is_not_followed_by_another():
    status = {"phase": "Suspended", "attempts": [SUSPENDED]}
    found = plan(SEEN, status, **REMOVED_FIELD)
    assert (found.status["phase"], found.status["reason"]) == ("Pending", "InvalidSpec")
    assert found.children == ()


@pytest.mark.parametrize("spec", [REMOVED_FIELD, {"output": None}])
def test_a_job_that_is_over_stays_as_it_is_whatever_becomes_of_its_spec(spec: dict[str, Any]):
    over = {**ATTEMPT, "finishedAt": "2026-03-01T12:00:10Z", "outcome": "Succeeded"}
    found = plan(SEEN, {"phase": "Succeeded", "reason": "", "attempts": [over]}, **spec)
    assert (found.status["phase"], found.status["reason"]) == ("Succeeded", "")


def test_too_little_of_a_spec_leaves_what_runs_alone():
    status = {"phase": "Training", "attempts": [ATTEMPT]}
    found = plan(replace(SEEN, ray_jobs=(replace(RAY_JOB, deployment_status="Running"),)), status, output=None)
    assert (found.status["phase"], found.status["reason"]) == ("Training", "InvalidSpec")
    assert (found.children, found.deletions) == ((), ())


def test_a_status_of_another_version_is_read_as_far_as_it_is_understood():
    found = plan(SEEN, {"phase": "Compiling", "attempts": [{"rayJob": "no-number"}], "conditions": [{"type": "New"}]})
    assert found.status["phase"] == "Starting"
    assert [child["kind"] for child in found.children] == ["ConfigMap", "NetworkPolicy", "RayJob"]


@pytest.mark.parametrize(
    ("refusal", "attempts", "phase", "accepted"),
    [
        pytest.param(NO_SUCH_FIELD, [], "Failed", "False", id="a spec that KubeRay refuses has failed"),
        pytest.param(NO_SUCH_FIELD, [SUSPENDED], "Pending", "False", id="after an attempt it waits to be mended"),
        pytest.param(Cause("NameConflict", "there"), [], "Pending", "True", id="a name that is taken is waited for"),
    ],
)
def test_a_child_that_the_api_server_refuses_is_told_and_tried_again(
    refusal: Cause, attempts: list[Any], phase: str, accepted: str
):
    found = plan(SEEN, {"attempts": attempts}, refusal=refusal)
    assert (found.status["phase"], found.status["reason"]) == (phase, refusal.reason)
    assert (found.status["message"], condition(found)[0]) == (refusal.message, accepted)
    assert found.children, "it must be asked for again"
    assert plan(SEEN, found.status).status["phase"] == "Starting"


def service_plan(seen: Observed, *, refusal: Cause | None = None, **spec: Any) -> Plan:
    document = service_document(namespace="team-a", uid=UID, model={"uri": "models:/tiny/3"}, **spec)
    document["metadata"]["generation"] = 1
    document["status"] = {"phase": "Ready", "usage": {"gpus": 2}, "model": {"name": "t", "version": "3", "uri": V3}}
    return plan_service(document, seen, settings=SETTINGS, now=T0, refusal=refusal)


V3 = "models:/team-a.tiny/3"
SERVES = Observed(
    ray_services=(RayServiceFacts("RayService", "team-a", "tiny-abcde", "s", UID, 1, ready=True),),
    replica=ReplicaState(V3, V3, "", T0),
)


def test_a_service_that_answers_goes_on_answering_when_its_new_spec_is_refused():
    found = service_plan(SERVES, engine="vllm")
    assert (found.status["phase"], found.status["reason"]) == ("Degraded", "InvalidSpec")
    assert (condition(found)[0], condition(found, "Ready")[0]) == ("False", "True")
    assert (found.status["usage"], found.status["model"]["uri"]) == ({"gpus": 2}, V3)
    assert (found.children, found.deletions) == ((), ())


def test_a_service_that_never_was_has_failed_when_its_spec_is_refused():
    found = service_plan(Observed(), engine="vllm")
    assert (found.status["phase"], condition(found)[0], condition(found, "Ready")[0]) == ("Failed", "False", "False")


@pytest.mark.parametrize(
    ("seen", "refusal", "phase"),
    [
        (Observed(), Cause("NameConflict", "there"), "Pending"),
        (Observed(), NO_SUCH_FIELD, "Failed"),
        (SERVES, NO_SUCH_FIELD, "Degraded"),
    ],
)
def test_a_child_of_a_service_that_is_refused_is_told(seen: Observed, refusal: Cause, phase: str):
    found = service_plan(seen, refusal=refusal)
    assert (found.status["phase"], found.status["reason"]) == (phase, refusal.reason)
    assert found.children


def test_a_cluster_that_etcd_could_not_hold_is_refused_with_its_limit():
    pad = json.dumps("x" * 600 * 1024)
    found = plan(SEEN, compute={"podTemplate": {"metadata": {"annotations": {"a": pad}}}})
    assert (found.status["phase"], found.status["reason"]) == ("Failed", "InvalidSpec")
    assert found.status["message"].startswith("spec.compute: is too large: the Ray cluster made from it")
    assert "1024 KiB" in found.status["message"]


def test_an_elastic_job_is_refused_where_the_platform_has_a_queue():
    document = pretrain_document(namespace="team-a", uid=UID, compute={"elastic": {"minWorkers": 1, "maxWorkers": 2}})
    document["metadata"]["generation"] = 1
    settings = SETTINGS.model_copy(update={"queue_name": "gpus"})
    told = plan_job(document, SEEN, settings=settings, now=T0).status
    assert (told["phase"], told["reason"]) == ("Failed", "InvalidSpec")
    assert "spec.compute.elastic: not supported yet: " in told["message"]
    assert "in the platform's queue gpus" in told["message"]
