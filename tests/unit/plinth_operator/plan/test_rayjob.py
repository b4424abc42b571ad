from typing import Any

import pytest

from makers import make_pretrain_job
from plinth_api.job import MAX_JOB_NAME_LENGTH
from plinth_operator.plan.rayjob import attempt_spec_hash, rayjob_name
from rendering import SETTINGS, UID, children_of, make


def rayjob_of(settings: Any = SETTINGS, attempt: int = 1, **changes: Any) -> dict[str, Any]:
    return children_of(make("PretrainJob", **changes), settings, attempt)["RayJob"]


def test_nothing_but_us_starts_the_job_a_second_time():
    spec = rayjob_of()["spec"]
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["submitterConfig"] == {"backoffLimit": 0}
    assert spec["backoffLimit"] == 0
    assert "activeDeadlineSeconds" not in rayjob_of(activeDeadlineSeconds=60)["spec"]


def test_the_cluster_goes_when_the_job_is_finished():
    spec = rayjob_of()["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] == 0


def test_the_entry_point_runs_the_document():
    command = "python -m plinth_workloads.train /etc/plinth/run.json --launcher ray"
    assert rayjob_of()["spec"]["entrypoint"] == command


def test_names_of_attempts_fit_kuberay():
    job = make_pretrain_job(name="a" * MAX_JOB_NAME_LENGTH, namespace="team-a", uid=UID)
    assert rayjob_name(job, 2) == "a" * MAX_JOB_NAME_LENGTH + "-abcde-2"
    assert len(rayjob_name(job, 9999)) <= 47


def test_an_attempt_says_which_it_is():
    metadata = rayjob_of(attempt=3)["metadata"]
    assert metadata["labels"]["plinth.dev/attempt"] == "3"


@pytest.mark.parametrize(
    ("default", "compute", "queue"),
    [("", {}, None), ("shared", {}, "shared"), ("shared", {"queueName": "own"}, "own"), ("", {"queueName": "q"}, "q")],
)
def test_a_queued_job_is_made_suspended(default: str, compute: dict[str, Any], queue: str | None):
    rayjob = rayjob_of(SETTINGS.model_copy(update={"queue_name": default}), compute=compute)
    assert rayjob["metadata"]["labels"].get("kueue.x-k8s.io/queue-name") == queue
    assert rayjob["spec"].get("suspend") is (True if queue else None)


def test_kueues_own_priority_is_passed_on_from_the_users_label():
    label = "kueue.x-k8s.io/priority-class"
    job = make("PretrainJob", compute={"queueName": "q"})
    labelled = job.model_copy(
        update={"metadata": job.metadata.model_copy(update={"labels": {label: "high", "team": "a"}})}
    )
    assert label not in children_of(job)["RayJob"]["metadata"]["labels"]
    labels = children_of(labelled)["RayJob"]["metadata"]["labels"]
    assert labels[label] == "high"
    assert "team" not in labels


@pytest.mark.parametrize(
    "change",
    [
        {"suspend": True},
        {"activeDeadlineSeconds": 10},
        {"ttlSecondsAfterFinished": 10},
        {"restart": {"maxRestarts": 9}},
        {"name": "other"},
    ],
)
def test_what_may_change_at_any_time_is_no_other_attempt(change: dict[str, Any]):
    assert attempt_spec_hash(make_pretrain_job(**change)) == attempt_spec_hash(make_pretrain_job())


@pytest.mark.parametrize(
    "change", [{"training": {"steps": 11}}, {"compute": {"workers": 2}}, {"output": {"model": "b"}}]
)
def test_anything_else_is_another_attempt(change: dict[str, Any]):
    assert attempt_spec_hash(make_pretrain_job(**change)) != attempt_spec_hash(make_pretrain_job())


def test_the_rayjob_says_which_spec_it_is_of():
    job = make("PretrainJob")
    job = job.model_copy(update={"metadata": job.metadata.model_copy(update={"generation": 7})})
    annotations = children_of(job)["RayJob"]["metadata"]["annotations"]
    assert annotations["plinth.dev/spec-hash"] == attempt_spec_hash(job)
    assert annotations["plinth.dev/generation"] == "7"
