"""All the children of a resource, in the order in which they are applied: what a pod needs comes before the pods."""

from plinth_api.model_service import ModelService
from plinth_api.parse import Job
from plinth_api.run import ServeRun, TrainRun
from plinth_operator.facts import Manifest
from plinth_operator.plan.access import build_ingress, build_network_policy
from plinth_operator.plan.metadata import manifest_hash as manifest_hash
from plinth_operator.plan.rayjob import build_rayjob
from plinth_operator.plan.rayservice import build_rayservice
from plinth_operator.plan.run_config import build_run_config
from plinth_operator.settings import Settings


def job_children(job: Job, run: TrainRun, *, attempt: int, settings: Settings) -> tuple[Manifest, ...]:
    """The children of one attempt of a job; the RayJob, which comes last, is created only.

    Raises:
        InvalidSpec: podTemplate is no pod template.
    """
    policies = (build_network_policy(job, settings=settings),) if settings.network_policies else ()
    rayjob = build_rayjob(job, run, attempt=attempt, settings=settings)
    return (build_run_config(run, job, attempt), *policies, rayjob)


def service_children(service: ModelService, run: ServeRun, *, settings: Settings) -> tuple[Manifest, ...]:
    """The children of a service.

    Raises:
        InvalidSpec: podTemplate is no pod template.
    """
    policies = (build_network_policy(service, settings=settings),) if settings.network_policies else ()
    ingress = build_ingress(service)
    rayservice = build_rayservice(service, run, settings=settings)
    return (*policies, rayservice, ingress) if ingress else (*policies, rayservice)
