"""What is said of a service without replicas: it is ready where its next request would be answered."""

from dataclasses import replace
from typing import Any

import pytest

from plinth_api.service_state import CandidateState
from plinth_operator.facts import ApplicationFacts, Observed, PodFacts, ReplicaState
from plinth_operator.status.rayservice import facts_from_rayservice
from unit.plinth_operator.plan.test_services import (
    ALIAS,
    CANARY,
    NOW,
    SEEN,
    V3,
    V4,
    facts,
    made,
    plan,
    user_config,
)

ZERO = {"scaling": {"minReplicas": 0}}
STEADY, UPSCALING = (
    ApplicationFacts("c1", "RUNNING", deployment="HEALTHY"),
    ApplicationFacts("c1", "RUNNING", "", "UPSCALING"),
)
WAS_READY = {"model": {"name": "team-a.tiny-chat", "version": "3", "uri": V3}}


def seen(active: ApplicationFacts = STEADY, replica: ReplicaState | None = None, **fields: Any) -> Observed:
    """The service as it is once it was made with minReplicas 0."""
    rendered = plan(SEEN, **ZERO).children[-1]
    before = made(replica=replica, **fields)
    service = replace(before.ray_services[0], **facts(rendered), serve_config=rendered["spec"]["serveConfigV2"])
    return replace(before, ray_services=(replace(service, active=active),))


def told(found: Observed, status: dict[str, Any] | None = None) -> tuple[str, str, str]:
    status = plan(found, WAS_READY if status is None else status, **ZERO).status
    (ready,) = [condition["status"] for condition in status["conditions"] if condition["type"] == "Ready"]
    return status["phase"], status.get("reason", ""), ready


def test_without_replicas_it_is_ready_as_the_next_request_is_held():
    assert told(seen()) == ("Ready", "ScaledToZero", "True")
    status = plan(seen(), WAS_READY, **ZERO).status
    assert status["message"] == "no replica, as nobody asks; the next request waits until there is one"
    assert status["model"]["uri"] == V3
    assert status["usage"]["gpus"] == 0


def test_while_a_replica_is_started_requests_wait_and_progress_is_told():
    loading = ReplicaState("", V3, "", NOW, loading="downloading 1.0 GiB of 3.4 GiB")
    for active, replica in ((UPSCALING, None), (UPSCALING, loading), (STEADY, loading)):
        assert told(seen(active, replica)) == ("Ready", "ScaledToZero", "True")
    message = plan(seen(UPSCALING, loading), WAS_READY, **ZERO).status["message"]
    assert message == "a replica is started, and requests wait for it; downloading 1.0 GiB of 3.4 GiB"


def test_with_a_replica_it_is_as_any_other():
    assert told(seen(replica=ReplicaState(V3, V3, "", NOW))) == ("Ready", "", "True")


@pytest.mark.parametrize("status", [{}, {"model": {"name": "team-a.tiny-chat", "version": "2", "uri": "models:/x/2"}}])
def test_a_version_that_was_never_in_service_is_not_ready_before_it_was_tried(status: dict[str, Any]):
    assert told(seen(), status)[0] == "Starting"


def test_a_new_version_at_zero_is_tried():
    found = seen(versions={ALIAS: V4})
    changed = plan(found, WAS_READY, **ZERO)
    assert V4 in changed.children[0]["spec"]["serveConfigV2"]
    assert changed.status["phase"] == "Starting"


def test_what_keeps_a_replica_from_starting_is_told():
    broken = ReplicaState("", V3, "the file is damaged", NOW)
    assert told(seen(UPSCALING, broken))[:2] == ("Degraded", "ModelLoadFailed")
    pod = PodFacts(
        **{"kind": "Pod", "namespace": "team-a", "name": "w", "uid": "w", "owner_uid": "u", "resource_version": 1},
        unschedulable="0/3 nodes are available",
    )
    phase, reason, ready = told(seen(UPSCALING, pods=(pod,)))
    assert (phase, reason, ready) == ("Starting", "Unschedulable", "False")


def test_a_service_that_keeps_replicas_is_not_ready_without_one():
    found = made(replica=None)
    quiet = replace(found, ray_services=(replace(found.ray_services[0], active=STEADY),))
    assert plan(quiet, WAS_READY).status["phase"] == "Starting"


def test_at_zero_a_new_version_that_is_tried_has_a_replica_started_for_it_and_the_old_one_stays_in_service():
    found = plan(seen(versions={ALIAS: V4}), WAS_READY, **ZERO, **CANARY)
    told = user_config(found)
    assert (told["uri"], told["candidate"], told["holdsRequests"]) == (V3, {"uri": V4, "weight": 10}, True)
    loading = ReplicaState("", V3, "", NOW, loading="downloading 1.0 GiB of 3.4 GiB")
    after = plan(seen(UPSCALING, loading, versions={ALIAS: V4}), found.status, **ZERO, **CANARY).status
    assert (after["phase"], after["reason"], after["model"]["uri"]) == ("Updating", "ScaledToZero", V3)
    assert after["message"] == (
        "a replica is started, and requests wait for it; "
        f"{V4} is being loaded beside {V3}; downloading 1.0 GiB of 3.4 GiB"
    )
    assert [one["status"] for one in after["conditions"] if one["type"] == "Ready"] == ["True"]


def test_at_zero_a_version_that_nobody_asks_is_promoted_by_the_replica_that_tries_it():
    status = plan(seen(versions={ALIAS: V4}), WAS_READY, **ZERO, **CANARY).status
    told = []
    for weight in (10, 50):
        # Three intervals without a request.
        candidate = CandidateState(uri=V4, weight=weight, loaded=True, seconds=180)
        replica = ReplicaState(V3, V3, "", NOW, replica_id="a", candidate=candidate)
        status = plan(seen(replica=replica, versions={ALIAS: V4}), status, **ZERO, **CANARY).status
        told.append((status["rollout"]["phase"], status["rollout"]["weight"]))
    assert told == [("Progressing", 50), ("Promoted", 100)]


def test_at_zero_a_version_that_was_taken_back_is_told_of():
    status = plan(seen(versions={ALIAS: V4}), WAS_READY, **ZERO, **CANARY).status
    failed = CandidateState(uri=V4, weight=10, failed=True, load_error="it is damaged")
    replica = ReplicaState(V3, V3, "", NOW, replica_id="a", candidate=failed)
    status = plan(seen(replica=replica, versions={ALIAS: V4}), status, **ZERO, **CANARY).status
    after = plan(seen(versions={ALIAS: V4}), status, **ZERO, **CANARY).status
    assert (after["phase"], after["reason"], after["rollout"]["phase"]) == ("Ready", "ScaledToZero", "RolledBack")
    assert after["message"].startswith("no replica, as nobody asks; the next request waits until there is one; ")
    assert "it cannot be loaded: it is damaged" in after["message"]


def test_requests_that_wait_for_a_version_to_take_the_place_of_another_are_told_of_with_its_progress():
    held = "requests wait while 4 takes the place of 3"
    replica = ReplicaState("", V4, "", NOW, held=held, loading="downloading 1.0 GiB of 3.4 GiB")
    status = plan(seen(replica=replica, versions={ALIAS: V4}), WAS_READY, **ZERO).status
    assert (status["phase"], status.get("reason", "")) == ("Updating", "")
    assert status["message"] == f"{held}; downloading 1.0 GiB of 3.4 GiB"


def test_progress_is_told_of_any_service_that_starts():
    loading = ReplicaState("", V3, "", NOW, loading="loading 3.4 GiB onto the device")
    status = plan(made(replica=loading)).status
    assert (status["phase"], status["message"]) == ("Starting", "loading 3.4 GiB onto the device")


def test_a_deployment_is_read_as_serve_says():
    application = {"status": "RUNNING", "serveDeploymentStatuses": {"model": {"status": "UPSCALING"}}}
    cluster = {"rayClusterName": "c1", "applicationStatuses": {"plinth": application}}
    manifest = {
        "kind": "RayService",
        "metadata": {"name": "s", "namespace": "a", "uid": "u", "resourceVersion": "1"},
        "status": {"activeServiceStatus": cluster},
    }
    assert facts_from_rayservice(manifest).active == ApplicationFacts("c1", "RUNNING", "", "UPSCALING")
