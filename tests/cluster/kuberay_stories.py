"""What happens to a RayJob, a RayCluster and a RayService, told to the real KubeRay step by step."""

from collections.abc import Callable
from functools import partial
from typing import Any

from cluster.record_kuberay import DRIVER, Stage

Spec = dict[str, Any]
FAILED = f"""{DRIVER}step 12
{{"plinth": "failure", "reason": "LossNaN", "message": "the loss is NaN at step 12"}}
"""
GIVEN_UP = """The deployment failed to start 3 times in a row.
{"plinth": "failure", "reason": "ModelLoadFailed", "message": "it has no tokenizer"}"""


def changed(**fields: Any) -> Callable[[Spec], None]:
    """A change of a spec."""
    return lambda spec: spec.update(fields)


def start(stage: Stage, *, job: str | None = "RUNNING", **fields: Any) -> None:
    """A job whose pods run, and which Ray knows in this state."""
    stage.ray_says(job)
    stage.create("RayJob", changed(**fields))
    stage.run_pods("head", "worker")
    stage.wait_job("Running")
    stage.wait_pods("submitter")


def succeeds(stage: Stage) -> None:
    """A job goes through every state of Ray's."""
    start(stage, job="PENDING")
    stage.wait_job("Running", "PENDING")
    stage.ray_says("RUNNING")
    stage.wait_job("Running", "RUNNING")
    stage.ray_says("SUCCEEDED", "Job finished successfully.")
    stage.wait_job("Running", "SUCCEEDED")
    stage.end_submitter(0)
    stage.wait_job("Complete", "SUCCEEDED")
    stage.wait_gone("rayclusters")


def fails(stage: Stage) -> None:
    """The program fails with our own record as its last line."""
    start(stage)
    stage.wait_job("Running", "RUNNING")
    stage.ray_says("FAILED", FAILED)
    stage.wait_job("Running", "FAILED")
    stage.end_submitter(1)
    stage.wait_job("Failed")


def ends_unnoticed(stage: Stage, status: str) -> None:
    """Ray's job is over, and the submitter does not end."""
    start(stage)
    stage.ray_says(status, "Job finished successfully." if status == "SUCCEEDED" else f"{DRIVER}ValueError: x\n")
    stage.wait_job("Running", status)
    stage.wait_job("Complete" if status == "SUCCEEDED" else "Failed")


def is_stopped(stage: Stage) -> None:
    """Somebody else stops Ray's job."""
    start(stage)
    stage.ray_says("STOPPED", "Job was intentionally stopped.")
    stage.wait_job("Running", "STOPPED")
    stage.end_submitter(1)
    stage.wait_job("Failed")


def is_stopped_and_submitter_succeeds(stage: Stage) -> None:
    """As above, where the submitter takes it for a good end."""
    start(stage)
    stage.ray_says("STOPPED", "Job was intentionally stopped.")
    stage.wait_job("Running", "STOPPED")
    stage.end_submitter(0)
    stage.wait_job("Complete", "STOPPED")


def cannot_be_submitted(stage: Stage) -> None:
    """The submitter ends with an error before Ray knows the job."""
    start(stage, job=None)
    stage.end_submitter(1)
    stage.wait_job("Failed")


def is_not_found(stage: Stage) -> None:
    """The submitter ends well, and Ray knows no job."""
    start(stage, job=None)
    stage.end_submitter(0)
    stage.wait_job("Failed")


def outlives_its_submitter(stage: Stage) -> None:
    """The submitter ends, and Ray's job goes on for longer than KubeRay waits."""
    start(stage)
    stage.wait_job("Running", "RUNNING")
    stage.end_submitter(0)
    stage.wait_job("Failed")


def passes_its_deadline(stage: Stage) -> None:
    """activeDeadlineSeconds while it runs."""
    start(stage, activeDeadlineSeconds=8)
    stage.wait_job("Running", "RUNNING")
    stage.wait_job("Failed")


def passes_its_deadline_early(stage: Stage) -> None:
    """activeDeadlineSeconds before its pods run."""
    stage.create("RayJob", changed(activeDeadlineSeconds=1))
    stage.wait_job("Failed")


def never_gets_its_pods(stage: Stage) -> None:
    """preRunningDeadlineSeconds."""
    stage.create("RayJob", changed(preRunningDeadlineSeconds=1))
    stage.wait_job("Failed")


def is_invalid(stage: Stage) -> None:
    """KubeRay's own validation refuses it."""
    stage.create("RayJob", changed(shutdownAfterJobFinishes=False, ttlSecondsAfterFinished=5))
    stage.wait_job("ValidationFailed")


def is_held_and_released(stage: Stage) -> None:
    """Made as Kueue has it: suspended, released, taken back."""
    stage.create("RayJob", changed(suspend=True))
    stage.wait_job("Suspended")
    stage.ray_says("RUNNING")
    stage.patch("rayjobs", {"spec": {"suspend": False}})
    stage.run_pods("head", "worker")
    stage.wait_job("Running", "RUNNING")
    stage.patch("rayjobs", {"spec": {"suspend": True}})
    stage.wait_job("Suspended")


def is_tried_again(stage: Stage) -> None:
    """KubeRay's own backoffLimit."""
    start(stage, backoffLimit=1)
    stage.ray_says("FAILED", f"{DRIVER}ValueError: x\n")
    stage.wait_job("Running", "FAILED")
    stage.end_submitter(1)
    stage.wait_job("Initializing")


def waits_for_its_user(stage: Stage) -> None:
    """InteractiveMode, in which a user submits."""

    def interactive(spec: Spec) -> None:
        spec["submissionMode"] = "InteractiveMode"
        for field in ("submitterConfig", "submitterPodTemplate"):
            spec.pop(field)

    stage.create("RayJob", interactive)
    stage.run_pods("head", "worker")
    stage.wait_job("Waiting")


def loses_its_head(stage: Stage) -> None:
    """The head pod goes while the job runs; KubeRay does not end it."""
    start(stage)
    stage.wait_job("Running", "RUNNING")
    (head,) = stage.pods("head")
    stage.delete("pods", head["metadata"]["name"], group="")
    stage.wait_words("rayclusters", "HeadPodReady=False/HeadPodNotFound", "RayClusterProvisioned=True")


def loses_its_head_beside_the_submitter(stage: Stage) -> None:
    """SidecarMode, where KubeRay notices."""

    def sidecar(spec: Spec) -> None:
        spec["submissionMode"] = "SidecarMode"
        for field in ("submitterConfig", "submitterPodTemplate"):
            spec.pop(field)

    stage.ray_says("RUNNING")
    stage.create("RayJob", sidecar, {"ray.io/disable-provisioned-head-restart": "true"})
    stage.run_pods("head", "worker")
    stage.wait_job("Running", "RUNNING")
    stage.delete("pods", stage.pods("head")[0]["metadata"]["name"], group="")
    stage.wait_job("Failed")


def is_deleted(stage: Stage) -> None:
    """The RayJob is deleted while it runs."""
    start(stage)
    stage.wait_job("Running", "RUNNING")
    stage.delete("rayjobs", stage.items("rayjobs")[0]["metadata"]["name"])
    stage.wait_gone("rayjobs")


def cannot_make_pods(stage: Stage, most: int) -> None:
    """A ResourceQuota lets too few pods in."""
    stage.forbid_pods(most)
    stage.create("RayJob")
    stage.wait_words("rayclusters", "ReplicaFailure=True")


def has_no_service_account(stage: Stage) -> None:
    """The API server refuses pods of an account that does not exist."""

    def with_account(spec: Spec) -> None:
        spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["serviceAccountName"] = "absent"

    stage.create("RayJob", with_account)
    stage.wait_words("rayclusters", "ReplicaFailure=True")


def cannot_pull_its_image(stage: Stage) -> None:
    """The head's container waits."""
    stage.create("RayJob")
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "workloads:1"'}}
    stage.set_pods("head", "Pending", waiting, reason="ContainersNotReady")
    stage.wait_words("rayclusters", "HeadPodReady=False/ImagePullBackOff")


def is_served(stage: Stage) -> None:
    """A service starts, is sick for a while, gets a second cluster, and is deleted."""
    stage.serve_says("DEPLOYING", "", "UPDATING", "1 replica is starting")
    stage.create("RayService")
    stage.run_pods("head")
    stage.wait_words("rayservices", "pending=DEPLOYING")
    stage.serve_says("RUNNING")
    stage.run_pods("worker")
    stage.place_pods()
    stage.proxy_is_healthy()
    stage.wait_words("rayservices", "Ready=True", "active=RUNNING")
    stage.serve_says("UNHEALTHY", "", "UNHEALTHY", "a replica failed its health check")
    stage.wait_words("rayservices", "active=UNHEALTHY")
    stage.serve_says("RUNNING")
    stage.wait_words("rayservices", "active=RUNNING")
    (service,) = stage.items("rayservices")
    cluster = service["spec"]["rayClusterConfig"]
    cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] = "workloads:2"
    stage.patch("rayservices", {"spec": {"rayClusterConfig": cluster}})
    stage.wait_words("rayservices", "UpgradeInProgress=True")
    stage.serve_says("DEPLOYING")
    stage.wait_pods("head", 2)
    stage.run_pods("head")
    stage.wait_words("rayservices", "pending=DEPLOYING")
    stage.delete("rayservices", service["metadata"]["name"])
    stage.wait_gone("rayservices")


def cannot_deploy(stage: Stage) -> None:
    """Ray Serve gives the application up."""
    stage.serve_says("NOT_STARTED")
    stage.create("RayService")
    stage.run_pods("head")
    stage.wait_words("rayservices", "pending=NOT_STARTED")
    stage.serve_says("DEPLOY_FAILED", "", "UNHEALTHY", GIVEN_UP)
    stage.wait_words("rayservices", "pending=DEPLOY_FAILED")
    stage.serve_says("DELETING")
    stage.wait_words("rayservices", "pending=DELETING")


def loses_its_endpoints(stage: Stage) -> None:
    """Ready, and then no pod answers any more."""
    stage.serve_says("RUNNING")
    stage.create("RayService")
    stage.run_pods("head", "worker")
    stage.place_pods()
    stage.proxy_is_healthy()
    stage.wait_words("rayservices", "Ready=True")
    for role in ("head", "worker"):
        stage.set_pods(role, "Running", {"running": {}}, reason="ContainersNotReady")
    stage.wait_words("rayservices", "Ready=False")


def never_gets_ready(stage: Stage) -> None:
    """KubeRay's annotation for it."""
    stage.create("RayService", annotations={"ray.io/initializing-timeout": "1s"})
    stage.wait_words("rayservices", "InitializingTimeout")


def is_an_invalid_service(stage: Stage) -> None:
    """KubeRay's own validation refuses it."""

    def invalid(spec: Spec) -> None:
        spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"] = []

    stage.create("RayService", invalid)
    stage.wait_words("rayservices", "ValidationFailed")


STORIES: dict[str, Callable[[Stage], None]] = {
    "succeeds": succeeds,
    "fails": fails,
    "succeeds unnoticed": partial(ends_unnoticed, status="SUCCEEDED"),
    "fails unnoticed": partial(ends_unnoticed, status="FAILED"),
    "is stopped": is_stopped,
    "is stopped quietly": is_stopped_and_submitter_succeeds,
    "cannot be submitted": cannot_be_submitted,
    "is not found": is_not_found,
    "outlives its submitter": outlives_its_submitter,
    "passes its deadline": passes_its_deadline,
    "passes its deadline early": passes_its_deadline_early,
    "never gets its pods": never_gets_its_pods,
    "is invalid": is_invalid,
    "is held and released": is_held_and_released,
    "is tried again": is_tried_again,
    "waits for its user": waits_for_its_user,
    "loses its head": loses_its_head,
    "loses its head beside the submitter": loses_its_head_beside_the_submitter,
    "is deleted": is_deleted,
    "has no quota": partial(cannot_make_pods, most=0),
    "has quota for its head": partial(cannot_make_pods, most=1),
    "has no service account": has_no_service_account,
    "cannot pull its image": cannot_pull_its_image,
    "is served": is_served,
    "cannot deploy": cannot_deploy,
    "loses its endpoints": loses_its_endpoints,
    "never gets ready": never_gets_ready,
    "is an invalid service": is_an_invalid_service,
}
