"""Which claims a resource needs, and what speaks against those that there are.

A claim that is missing holds a resource until it appears; one that cannot do what is asked of it refuses the spec.
"""

from collections.abc import Iterator, Mapping, Sequence

from plinth_api.common import Volume
from plinth_api.elastic import most_workers
from plinth_api.errors import Problem
from plinth_api.model_service import ModelService
from plinth_api.objective_rules import teacher_of
from plinth_api.parse import Job, Resource
from plinth_api.pretrain_job import PretrainJob
from plinth_api.uris import in_object_store, local_path
from plinth_operator.facts import ClaimFacts
from plinth_operator.settings import Settings

_CHECKPOINT = "spec.checkpoint.uri"


def claims_of(resource: Resource, settings: Settings) -> tuple[str, ...]:
    """Every claim that the pods of a resource mount: pvc:// URIs, volumes, storage of jobs, cache of models."""
    claims = {volume.claim_name for volume in resource.spec.compute.volumes or ()} | set(uri_claims(resource))
    if isinstance(resource, ModelService):
        claims |= {settings.model_cache_claim} - {""}
    elif uses_platform_storage(resource):
        claims.add(settings.storage_claim)
    return tuple(sorted(claims))


def uri_claims(resource: Resource) -> tuple[str, ...]:
    """The claims that pvc:// URIs of the spec name."""
    uris = _service_uris(resource) if isinstance(resource, ModelService) else _job_uris(resource)
    return tuple(sorted({claim for uri in uris if (claim := _claim_of(uri))}))


def uses_platform_storage(job: Job) -> bool:
    """Whether the work folder is on the platform's own claim: an object store has none that pods could share."""
    uri = job.spec.checkpoint.uri
    return uri is None or in_object_store(uri)


def checkpoint_claim(job: Job, settings: Settings) -> str | None:
    """The claim that is mounted for checkpoints and the work folder; None where they are in a file:/// folder."""
    return settings.storage_claim if uses_platform_storage(job) else _claim_of(job.spec.checkpoint.uri or "")


def missing_claims(resource: Resource, claims: Mapping[str, ClaimFacts], settings: Settings) -> tuple[str, ...]:
    """The claims that a resource needs and its namespace does not have."""
    return tuple(name for name in claims_of(resource, settings) if name not in claims)


def storage_problems(resource: Resource, claims: Mapping[str, ClaimFacts], settings: Settings) -> list[Problem]:
    """What speaks against the storage of a resource.

    Args:
        resource: What the user asks for.
        claims: Those of its namespace, by name; one that is missing is no problem of the spec.
        settings: Of the operator.
    """
    if isinstance(resource, ModelService):
        return []
    return [*_folder_problems(resource), *_sharing_problems(resource, claims, settings)]


def _folder_problems(job: Job) -> Iterator[Problem]:
    """Checkpoints in a folder of the container would be lost with the pod, and each pod would have its own."""
    path = local_path(job.spec.checkpoint.uri or "")
    pod_spec = (job.spec.compute.pod_template or {}).get("spec")
    if path is None or (isinstance(pod_spec, dict) and pod_spec.get("volumes")):
        return
    volume = _volume_at(path, job.spec.compute.volumes or ())
    if volume is None:
        yield Problem(
            _CHECKPOINT,
            f"{path} is a folder of the container on a cluster, and is lost with it; use pvc://claim/path, or mount a "
            "claim there with spec.compute.volumes",
        )
    elif volume.read_only:
        yield Problem(
            _CHECKPOINT,
            f"{path} is on claim {volume.claim_name}, which spec.compute.volumes mounts for reading only; leave "
            "readOnly out",
        )


def _sharing_problems(job: Job, claims: Mapping[str, ClaimFacts], settings: Settings) -> Iterator[Problem]:
    volume = _volume_at(local_path(job.spec.checkpoint.uri or "") or "", job.spec.compute.volumes or ())
    name = checkpoint_claim(job, settings) or (volume.claim_name if volume else "")
    claim, workers = claims.get(name), most_workers(job.spec.compute)
    if claim is None or "ReadWriteMany" in claim.access_modes:
        return
    modes = ", ".join(claim.access_modes) or "none"
    if workers > 1:
        yield Problem(
            _CHECKPOINT,
            f"{workers} workers save to claim {name}, whose access modes are {modes}; use a claim with ReadWriteMany, "
            "or set spec.compute.workers to 1",
        )
    elif claim.access_modes == ("ReadWriteOncePod",):
        yield Problem(
            _CHECKPOINT,
            f"claim {name} has the access mode ReadWriteOncePod only, and a job is two pods or more; use a claim with "
            "ReadWriteMany or ReadWriteOnce",
        )


def _job_uris(job: Job) -> Iterator[str]:
    yield from (source.uri for source in job.spec.data.train)
    if job.spec.data.validation:
        yield from (source.uri for source in job.spec.data.validation.sources or ())
    yield job.spec.model.uri or ""
    if teacher := teacher_of(job):
        yield teacher.uri
    if isinstance(job, PretrainJob) and job.spec.model.tokenizer:
        yield job.spec.model.tokenizer.uri or ""
    yield job.spec.checkpoint.uri or ""
    yield job.spec.checkpoint.resume_from or ""


def _service_uris(service: ModelService) -> Iterator[str]:
    yield service.spec.model.uri
    yield from (adapter.uri for adapter in service.spec.adapters or ())


def _claim_of(uri: str) -> str | None:
    return uri.removeprefix("pvc://").partition("/")[0] if uri.startswith("pvc://") else None


def _volume_at(path: str, volumes: Sequence[Volume]) -> Volume | None:
    """The volume that is mounted at `path` or nearest above it."""
    above = [volume for volume in volumes if f"{path}/".startswith(f"{volume.mount_path.rstrip('/')}/")]
    return max(above, key=lambda volume: len(volume.mount_path), default=None)
