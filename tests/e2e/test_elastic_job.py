"""An elastic job: Ray's autoscaler and KubeRay add a pod that it grows into, and it goes on without one that is lost.

One story in the order of its tests, on one job and within one attempt.
"""

import time

import pytest

from cluster.control_plane import wait_until
from faults import FORCED, Faults, longest_pause, steps_done_twice
from small_job import FIRST_STEP_SECONDS, SAVE_EVERY, SmallJob, add_storage, small_job
from teams import Team

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def job(team: Team) -> SmallJob:
    compute = {"workers": 1, "elastic": {"minWorkers": 1, "maxWorkers": 2}}
    compute["perWorker"] = {"cpus": "200m", "memory": "2Gi"}
    return SmallJob(team, add_storage(team), small_job("stretchy", compute=compute))


def counts(job: SmallJob) -> list[int]:
    """The numbers of workers of the sessions that have trained, one after the other."""
    found: list[int] = []
    started: dict[str, int] | None = None
    for event in job.events():
        started = event if event["event"] == "started" else started
        if event["event"] == "step" and started is not None:
            found.append(started["workers"])
            started = None
    return found


def wait_counts(job: SmallJob, wanted: list[int]) -> None:
    def trained() -> bool:
        return counts(job)[: len(wanted)] == wanted

    try:
        wait_until(trained, FIRST_STEP_SECONDS, f"sessions of {wanted} workers")
    except TimeoutError as error:
        raise AssertionError(f"{error}: {counts(job)}\n{job.team.story('pretrainjob', job.name)}") from None
    job.wait_steps(3, 60)


def test_it_grows_into_a_pod_that_the_autoscaler_adds(job: SmallJob, faults: Faults):
    job.wait_training()
    at = time.time()
    wait_counts(job, [1, 2])
    events = job.events()
    pause = round(longest_pause(events, min(at, job.steps()[-1]["time"])), 1)
    faults.add("elastic: one worker more", reason="", stepsLost=steps_done_twice(events, 0.0), nextStepSeconds=pause)
    assert steps_done_twice(events, 0.0) == 0
    assert len(job.team.pods(job.name, **{"ray.io/node-type": "worker"})) == 2


def test_it_goes_on_without_a_worker_that_is_lost(job: SmallJob, faults: Faults):
    at = time.time()
    job.delete_pod("worker", *FORCED)
    wait_until(lambda: len(counts(job)) > 2, FIRST_STEP_SECONDS, "another session")
    events = job.events()
    lost, pause = steps_done_twice(events, at), round(longest_pause(events, at), 1)
    faults.add("elastic: worker pod deleted", reason="", stepsLost=lost, nextStepSeconds=pause)
    assert lost <= SAVE_EVERY
    (attempt,) = job.attempts()
    assert attempt.get("outcome") is None


def test_it_is_suspended_as_others_are(job: SmallJob):
    job.patch({"suspend": True})
    status = job.wait(lambda status: status["phase"] == "Suspended", 180, "it is suspended")
    assert status["attempts"][-1]["lostSteps"] == 0
    wait_until(lambda: not job.team.pods(job.name), 120, "the end of its pods")
    events = job.events()
    assert events[-1]["event"] == "stopped"
    assert events[-1]["step"] == job.steps()[-1]["step"]
