"""The life of a job through plan_job."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from makers import fine_tune_document, pretrain_document
from plinth_operator.facts import ClaimFacts, ObjectFacts, Observed, PodFacts, RayJobFacts, RunFacts
from plinth_operator.plan.jobs import plan_job
from plinth_operator.plan.plan import Plan
from rendering import SETTINGS, UID

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
CLAIM = ClaimFacts(
    "PersistentVolumeClaim", "team-a", "plinth", "c", "", 1, phase="Bound", access_modes=("ReadWriteMany",)
)
RUN = RunFacts("r1", "1", status="RUNNING", read_at=T0)
SEEN = Observed(claims={"plinth": CLAIM}, run=RUN)
HEAD = PodFacts("Pod", "team-a", "head", "h", UID, 1, role="head", ray_cluster="c1", phase="Running", ready=True)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def ray_job(attempt: int = 1, **fields: Any) -> RayJobFacts:
    known = {"created_at": T0, "started_at": T0, "ray_cluster": "c1", **fields}
    return RayJobFacts("RayJob", "team-a", f"tiny-abcde-{attempt}", f"j{attempt}", UID, 1, attempt=attempt, **known)


RUNNING = ray_job(deployment_status="Running", job_status="RUNNING")
DONE = ray_job(deployment_status="Complete", job_status="SUCCEEDED", ended_at=at(50))
FAILED = ray_job(deployment_status="Failed", job_status="FAILED", reason="AppFailed", ended_at=at(50))
LIVE = replace(SEEN, ray_jobs=(RUNNING,), pods=(HEAD,))


def plan(seen: Observed, status: dict[str, Any] | None = None, now: float = 60, **spec: Any) -> Plan:
    """The plan; which is the same when asked again, and keeps its status when that is fed back."""
    document = pretrain_document(namespace="team-a", uid=UID, **spec)
    document["metadata"]["generation"] = 1
    document["status"] = status or {}
    found = plan_job(document, seen, settings=SETTINGS, now=at(now))
    assert plan_job(document, seen, settings=SETTINGS, now=at(now)) == found
    again = plan_job({**document, "status": found.status}, seen, settings=SETTINGS, now=at(now))
    assert again.status == found.status
    return found


def record(**fields: Any) -> RunFacts:
    return replace(RUN, **{"read_at": at(55), "status": "FINISHED", **fields})


@pytest.mark.parametrize(
    ("seen", "spec", "phase", "reason"),
    [
        pytest.param(replace(SEEN, kuberay=False), {}, "Pending", "KubeRayMissing", id="without KubeRay it waits"),
        pytest.param(replace(SEEN, claims={}), {}, "Pending", "VolumeNotFound", id="without its claim it waits"),
        pytest.param(
            replace(SEEN, run=None, tracking_error="away"), {}, "Pending", "TrackingUnavailable", id="without MLflow"
        ),
        pytest.param(replace(SEEN, run=None), {}, "Pending", None, id="without a run it asks for one"),
        pytest.param(SEEN, {"suspend": True}, "Suspended", None, id="a suspended job does not start"),
        pytest.param(SEEN, {"training": {"steps": -1}}, "Failed", "InvalidSpec", id="an invalid spec is refused"),
    ],
)
def test_a_gate_holds_with_its_reason_and_creates_nothing(seen: Observed, spec: Any, phase: str, reason: str | None):
    found = plan(seen, **spec)
    assert (found.status["phase"], found.status.get("reason") or None) == (phase, reason)
    assert found.children == ()
    assert (found.want_run is not None) == (reason is None and phase == "Pending")


@pytest.mark.parametrize("version", [pytest.param("", id="no such alias"), pytest.param(None, id="not asked yet")])
def test_an_alias_that_is_not_known_is_asked_for(version: str | None):
    document = fine_tune_document(namespace="team-a", uid=UID, model={"uri": "models:/tiny@best"})
    document["metadata"]["generation"] = 1
    uri = plan_job(document, SEEN, settings=SETTINGS, now=T0).want_versions[0]
    seen = replace(SEEN, versions={} if version is None else {uri: version})
    found = plan_job(document, seen, settings=SETTINGS, now=T0)
    assert (found.want_versions, found.children) == ((uri,), ())
    assert (found.status.get("reason") == "ModelNotFound") == (version == "")


def test_children_are_created_in_order():
    found = plan(SEEN)
    assert [child["kind"] for child in found.children] == ["ConfigMap", "NetworkPolicy", "RayJob"]


@pytest.mark.parametrize(
    ("seen", "phase", "reason"),
    [
        pytest.param(replace(SEEN, ray_jobs=(ray_job(),)), "Starting", None, id="a new RayJob is starting"),
        pytest.param(
            replace(SEEN, ray_jobs=(ray_job(),), pods=(replace(HEAD, phase="Pending", unschedulable="no node"),)),
            "Starting",
            "Unschedulable",
            id="a pod without a node is the reason",
        ),
        pytest.param(replace(LIVE, run=record(status="RUNNING", step=3)), "Training", None, id="a step is training"),
        pytest.param(
            replace(LIVE, run=record(status="RUNNING", tags={"plinth.phase": "evaluating"})),
            "Evaluating",
            None,
            id="the run says that it evaluates",
        ),
        pytest.param(replace(SEEN, ray_jobs=(DONE,)), "Evaluating", None, id="an end waits for the record"),
        pytest.param(replace(SEEN, ray_jobs=(DONE,), run=record()), "Succeeded", None, id="success with the record"),
        pytest.param(
            replace(SEEN, ray_jobs=(DONE,), run=record(tags={"plinth.gate": "Failed"})),
            "Failed",
            "GateFailed",
            id="a failed gate fails the job",
        ),
        pytest.param(
            replace(SEEN, ray_jobs=(FAILED,), run=record(status="FAILED", tags={"plinth.failureReason": "LossNaN"})),
            "Failed",
            "LossNaN",
            id="a failure by record is final",
        ),
        pytest.param(SEEN, "Starting", None, id="nothing exists yet"),
    ],
)
def test_the_phase_is_what_is_observed(seen: Observed, phase: str, reason: str | None):
    found = plan(seen).status
    assert (found["phase"], found.get("reason") or None) == (phase, reason)


@pytest.mark.parametrize(
    ("spec", "seen", "phase", "outcome"),
    [
        pytest.param({}, replace(LIVE, pods=()), "Pending", "HeadLost", id="the head is lost"),
        pytest.param(
            {"restart": {"maxRestarts": 0}}, replace(LIVE, pods=()), "Failed", "HeadLost", id="the last head is lost"
        ),
        pytest.param({"activeDeadlineSeconds": 30}, LIVE, "Failed", "DeadlineExceeded", id="the deadline is over"),
    ],
)
def test_an_end_is_told_before_its_rayjob_is_deleted(spec: Any, seen: Observed, phase: str, outcome: str):
    told = plan(seen, **spec)
    assert (told.deletions, told.children, told.look_again, told.requeue_seconds) == ((), (), (RUNNING,), 0)
    assert (told.status["phase"], told.status["attempts"][-1]["outcome"]) == (phase, outcome)
    then = plan(seen, told.status, **spec)
    assert (then.deletions, then.children, then.status["phase"]) == ((RUNNING,), (), phase)
    assert then.status["reason"] == outcome
    assert [one["outcome"] for one in then.status["attempts"]] == [outcome]
    gone = plan(SEEN, told.status, **spec)
    assert (gone.status["phase"], gone.status["attempts"]) == (phase, then.status["attempts"])


def test_the_rayjob_of_a_suspended_job_is_deleted():
    found = plan(LIVE, suspend=True)
    assert (found.deletions, found.children) == ((RUNNING,), ())
    assert found.status["attempts"][-1]["outcome"] == "Suspended"


def test_a_lost_head_is_followed_by_another_attempt_after_the_wait():
    lost = plan(replace(LIVE, pods=())).status
    assert plan(SEEN, lost, now=69).children == ()
    assert plan(SEEN, lost, now=70).children[-1]["metadata"]["name"] == "tiny-abcde-2"


def test_a_suspended_job_goes_on_at_once_when_it_is_resumed():
    suspended = plan(LIVE, suspend=True).status
    assert plan(SEEN, suspended).children[-1]["metadata"]["name"] == "tiny-abcde-2"


def test_a_rayjob_deleted_by_hand_is_a_failure_that_is_tried_again():
    found = plan(SEEN, plan(LIVE).status).status
    assert (found["phase"], found["attempts"][-1]["outcome"]) == ("Pending", "RayJobDeleted")


def test_the_end_survives_its_children_which_ttl_deletes():
    seen = replace(SEEN, ray_jobs=(DONE,), run=record())
    ended = plan(seen).status
    assert plan(SEEN, ended).status == ended
    assert plan(seen, ended, now=149, ttlSecondsAfterFinished=100).deletions == ()
    assert plan(seen, ended, now=150, ttlSecondsAfterFinished=100).deletions == (DONE,)


OLDER: dict[str, Any] = {"spec_hash": "older"}
QUEUE = {"compute": {"queueName": "q"}}


def next_plan(seen: Observed, status: dict[str, Any], **spec: Any) -> Plan:
    """The plan alone: what is told first is followed by another status."""
    document = pretrain_document(namespace="team-a", uid=UID, **spec)
    document["metadata"]["generation"] = 2
    return plan_job({**document, "status": status}, seen, settings=SETTINGS, now=at(60))


def accepted(found: Plan) -> str:
    reason: str = next(one for one in found.status["conditions"] if one["type"] == "Accepted")["reason"]
    return reason


@pytest.mark.parametrize(
    ("job", "spec"),
    [
        pytest.param(ray_job(started_at=None), {}, id="KubeRay has not seen it"),
        pytest.param(ray_job(deployment_status="Initializing"), {}, id="its pods come up"),
        pytest.param(ray_job(deployment_status="Running"), {}, id="its program is being submitted"),
        pytest.param(ray_job(deployment_status="Running", job_status="PENDING"), {}, id="Ray has not begun it"),
        pytest.param(ray_job(deployment_status="ValidationFailed"), {}, id="KubeRay refuses the older spec"),
        pytest.param(ray_job(deployment_status="Suspended", suspended=True, started_at=None), QUEUE, id="it is queued"),
    ],
)
def test_an_attempt_that_has_not_run_is_replaced_by_one_of_the_new_spec(job: RayJobFacts, spec: Any):
    older = replace(job, **OLDER)
    seen = replace(SEEN, ray_jobs=(older,), pods=(HEAD,))
    told = next_plan(seen, {}, restart={"maxRestarts": 0}, **spec)
    assert (told.look_again, told.deletions, told.children) == ((older,), (), ())
    assert (told.status["phase"], told.status["reason"]) == ("Pending", "SpecChanged")
    assert [one["outcome"] for one in told.status["attempts"]] == ["SpecChanged"]
    assert told.requeue_seconds == 0
    follows = next_plan(seen, told.status, restart={"maxRestarts": 0}, **spec)
    assert follows.deletions == (older,)
    assert follows.children[-1]["metadata"]["name"] == "tiny-abcde-2"
    # The watch does not tell of the deletion yet.
    made = replace(ray_job(2), spec_hash=follows.children[-1]["metadata"]["annotations"]["plinth.dev/spec-hash"])
    now = next_plan(replace(seen, ray_jobs=(older, made)), told.status, restart={"maxRestarts": 0}, **spec)
    assert (now.deletions, now.look_again, accepted(now)) == ((), (), "Accepted")
    assert [one.get("outcome") for one in now.status["attempts"]] == ["SpecChanged", None]


@pytest.mark.parametrize(
    ("job", "tags"),
    [
        pytest.param(RUNNING, {}, id="Ray says so"),
        pytest.param(
            ray_job(deployment_status="Running"), {"plinth.trainingSince": at(9).isoformat()}, id="its run says so"
        ),
    ],
)
def test_an_attempt_that_has_run_goes_on_with_its_spec_and_a_condition_tells(job: RayJobFacts, tags: dict[str, str]):
    found = plan(replace(LIVE, ray_jobs=(replace(job, **OLDER),), run=replace(RUN, tags=tags)))
    assert (found.look_again, found.deletions, accepted(found)) == ((), (), "SpecChanged")


def test_what_the_run_says_of_an_attempt_before_is_nothing_of_this_one():
    run = replace(RUN, step=12, tags={"plinth.trainingSince": at(-9).isoformat()})
    found = next_plan(replace(SEEN, ray_jobs=(ray_job(**OLDER),), run=run), {})
    assert found.status["attempts"][-1]["outcome"] == "SpecChanged"


def test_the_same_spec_read_by_another_plinth_is_no_change():
    waiting = ray_job(spec_generation=1, **OLDER)
    found = plan(replace(SEEN, ray_jobs=(waiting,)))
    assert (found.look_again, found.deletions, accepted(found)) == ((), (), "Accepted")


@pytest.mark.parametrize(
    ("lacks", "spec", "reason"),
    [
        pytest.param({"claims": {}}, {}, "VolumeNotFound", id="something is missing"),
        pytest.param({}, {"compute": {"workers": 3}}, "InvalidSpec", id="it is invalid"),
    ],
)
def test_an_attempt_of_an_older_spec_does_not_run_while_the_new_one_cannot(lacks: Any, spec: Any, reason: str):
    older = ray_job(**OLDER)
    seen = replace(SEEN, ray_jobs=(older,), **lacks)
    found = next_plan(seen, next_plan(seen, {}, **spec).status, **spec)
    assert (found.deletions, found.children) == ((older,), ())
    assert (found.status["phase"], found.status["reason"]) == ("Pending", reason)


def test_a_job_that_kueue_has_stopped_goes_on_with_the_new_spec():
    running = plan(LIVE, **QUEUE).status
    held = replace(RUNNING, suspended=True, **OLDER)
    told = next_plan(replace(SEEN, ray_jobs=(held,)), running, **QUEUE)
    assert [one["outcome"] for one in told.status["attempts"]] == ["Preempted"]
    assert (told.deletions, told.children) == ((), ())
    follows = next_plan(replace(SEEN, ray_jobs=(held,)), told.status, **QUEUE)
    assert follows.deletions == (held,)
    assert follows.children[-1]["metadata"]["name"] == "tiny-abcde-2"


PREEMPTED = replace(FAILED, message='{"plinth": "failure", "reason": "Preempted", "message": "made room"}')


def test_an_end_is_told_before_the_next_attempt_begins():
    told = next_plan(replace(SEEN, ray_jobs=(PREEMPTED,)), plan(LIVE).status)
    assert (told.children, told.deletions, told.requeue_seconds) == ((), (), 0)
    assert (told.status["phase"], told.status["reason"]) == ("Pending", "Preempted")
    follows = next_plan(replace(SEEN, ray_jobs=(PREEMPTED,)), told.status)
    assert follows.children[-1]["metadata"]["name"] == "tiny-abcde-2"
    assert follows.deletions == ()
    assert [one["outcome"] for one in told.status["attempts"]] == ["Preempted"]


@pytest.mark.parametrize(
    ("seen", "spec", "expected"),
    [
        pytest.param(replace(LIVE, pods=()), {}, True, id="a lost head may be a pod that is seen late"),
        pytest.param(LIVE, {"suspend": True}, False, id="a suspension has nothing to do with pods"),
        pytest.param(LIVE, {"activeDeadlineSeconds": 30}, False, id="nor has a deadline"),
    ],
)
def test_pods_are_looked_at_again_only_where_they_decide(seen: Observed, spec: Any, expected: bool):
    found = plan(seen, **spec)
    assert ((*found.deletions, *found.look_again), found.look_at_pods) == ((RUNNING,), expected)


def test_kueue_takes_the_machines_and_gives_them_back():
    queue = {"compute": {"queueName": "q"}}
    held = ray_job(suspended=True, started_at=None)
    queued = plan(replace(SEEN, ray_jobs=(held,)), **queue).status
    running = plan(LIVE, queued, **queue).status
    preempted = plan(replace(SEEN, ray_jobs=(replace(RUNNING, suspended=True),)), running, **queue).status
    resumed = plan(replace(LIVE, ray_jobs=(replace(RUNNING, started_at=at(80)),)), preempted, now=90, **queue).status
    assert [one["phase"] for one in (queued, running, preempted, resumed)] == [
        *("Queued", "Starting", "Queued", "Starting")
    ]
    assert [(one["number"], one.get("outcome")) for one in resumed["attempts"]] == [(1, "Preempted"), (2, None)]


def test_a_job_that_goes_on_starts_until_it_trains_again():
    tags = {"plinth.phase": "training", "plinth.startStep": "0", "plinth.trainingSince": at(9).isoformat()}
    trained = replace(RUN, step=12, tags={**tags, "plinth.checkpointStep": "5", "plinth.checkpointUri": "file:///5"})
    running = plan(replace(LIVE, run=trained), **QUEUE).status
    held = replace(RUNNING, suspended=True)
    preempted = plan(replace(SEEN, ray_jobs=(held,), run=trained), running, **QUEUE).status
    assert [(one["lastStep"], one["lostSteps"]) for one in preempted["attempts"]] == [(12, 7)]
    again = replace(LIVE, ray_jobs=(replace(RUNNING, started_at=at(80)),), run=trained)
    starting = plan(again, preempted, now=90, **QUEUE).status
    assert starting["phase"] == "Starting"
    assert "fromStep" not in starting["attempts"][1]
    # It had saved once more when its pods were asked to end.
    since = replace(
        trained, tags={**trained.tags, "plinth.startStep": "13", "plinth.trainingSince": at(95).isoformat()}
    )
    training = plan(replace(again, run=since), starting, now=99, **QUEUE).status
    first, second = training["attempts"]
    assert (training["phase"], second["fromStep"]) == ("Training", 13)
    assert (first["lastStep"], first["lostSteps"]) == (13, 0)


def test_a_suspension_whose_status_was_not_written_is_still_a_suspension():
    running = plan(LIVE).status
    suspended = plan(SEEN, running, suspend=True).status
    assert suspended["phase"] == "Suspended"
    assert [attempt["outcome"] for attempt in suspended["attempts"]] == ["Suspended"]


def as_facts(manifest: Any, **changes: Any) -> ObjectFacts:
    meta = manifest["metadata"]
    made = {"hash": meta["annotations"]["plinth.dev/hash"], "spec": json.dumps(manifest.get("spec", {})), **changes}
    return ObjectFacts(manifest["kind"], "team-a", meta["name"], meta["name"], UID, 1, **made)


CONFIG, POLICY = (as_facts(child) for child in plan(SEEN).children[:2])


@pytest.mark.parametrize(
    ("children", "job", "expected"),
    [
        pytest.param((CONFIG, POLICY), RUNNING, [], id="what is there is left alone"),
        pytest.param((POLICY,), RUNNING, ["ConfigMap"], id="a ConfigMap that was deleted is made again"),
        pytest.param((CONFIG,), RUNNING, ["NetworkPolicy"], id="a NetworkPolicy that was deleted is made again"),
        pytest.param(
            (CONFIG, replace(POLICY, spec="{}")), RUNNING, ["NetworkPolicy"], id="an edited NetworkPolicy is put right"
        ),
        pytest.param(
            (replace(CONFIG, hash="older"), POLICY),
            RUNNING,
            [],
            id="the ConfigMap of a running attempt is never changed",
        ),
        pytest.param(
            (POLICY,), replace(RUNNING, spec_hash="older"), [], id="nor made from a spec that the attempt does not run"
        ),
        pytest.param((), FAILED, [], id="what has ended needs nothing"),
    ],
)
def test_a_running_attempt_keeps_what_it_needs(children: Any, job: RayJobFacts, expected: list[str]):
    assert [child["kind"] for child in plan(replace(LIVE, ray_jobs=(job,), children=children)).children] == expected


def test_the_config_map_of_an_attempt_that_never_began_follows_the_spec():
    found = plan(replace(SEEN, children=(replace(CONFIG, hash="older"), POLICY)))
    assert [child["kind"] for child in found.children] == ["ConfigMap", "RayJob"]
    assert [(facts.kind, facts.hash) for facts in found.deletions] == [("ConfigMap", "older")]
