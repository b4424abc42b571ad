"""What a cluster decides for a run document, and the ConfigMap that carries one to the pods.

A service has no ConfigMap: its document travels in the configuration of Ray Serve (rayservice.py).
"""

from plinth_api.model_service import ModelService
from plinth_api.parse import Job, Resource
from plinth_api.quantity import parse_quantity
from plinth_api.resolve import ResolveSettings
from plinth_api.run import TrainRun
from plinth_api.uris import mounted
from plinth_operator.constants import CLUSTER_TAG, UID_TAG, VOLUME_ROOT
from plinth_operator.facts import Manifest
from plinth_operator.plan.access import PROBE_PORT
from plinth_operator.plan.metadata import child_metadata, child_name, namespace_of, sealed, uid_of
from plinth_operator.plan.paths import API_KEYS_FOLDER, MODEL_CACHE_DIR, RUN_KEY, SERVICE_WORK_DIR
from plinth_operator.plan.storage import uses_platform_storage
from plinth_operator.settings import Settings


def resolve_settings_for(resource: Resource, settings: Settings, run_id: str | None = None) -> ResolveSettings:
    """What this cluster decides for a resource.

    Args:
        resource: As the API server has it, with uid and namespace.
        settings: Of the operator.
        run_id: The MLflow run that the operator made for the job.
    """
    uid, namespace = uid_of(resource), namespace_of(resource)
    return ResolveSettings(
        uid=uid,
        volume_root=VOLUME_ROOT,
        checkpoint_root=_default_checkpoint_root(settings),
        work_dir=_work_dir(resource, settings, uid),
        tracking_uri=settings.tracking_uri,
        tracking_secret=settings.tracking_secret,
        registry_prefix=f"{namespace}.",
        run_id=run_id,
        api_keys_dir=API_KEYS_FOLDER,
        has_vllm=bool(settings.vllm_image),
        probe_port=PROBE_PORT,
        model_cache_dir=MODEL_CACHE_DIR if settings.model_cache_claim else None,
        model_cache_bytes=int(parse_quantity(settings.model_cache_size)) if settings.model_cache_size else None,
        tags={
            UID_TAG: uid,
            CLUSTER_TAG: settings.cluster_name,
            "plinth.kind": resource.kind,
            "plinth.namespace": namespace,
            "plinth.name": resource.metadata.name,
        },
    )


def build_run_config(run: TrainRun, owner: Job, attempt: int) -> Manifest:
    """The ConfigMap of one attempt with run.json; immutable, so that what an attempt ran stays to be read.

    The document is compact: `resolve_train_run` has measured it so, and etcd bounds it.
    """
    return sealed(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": child_metadata(owner, run_config_name(owner, attempt), attempt),
            "immutable": True,
            "data": {RUN_KEY: run.model_dump_json(by_alias=True)},
        }
    )


def run_config_name(job: Job, attempt: int) -> str:
    """Name of the ConfigMap of an attempt."""
    return child_name(job, attempt)


def _default_checkpoint_root(settings: Settings) -> str:
    return f"{VOLUME_ROOT}/{settings.storage_claim}/checkpoints"


def _work_dir(resource: Resource, settings: Settings, uid: str) -> str:
    """A folder that all pods of a job see, which is why it is beside the checkpoints."""
    if isinstance(resource, ModelService):
        return SERVICE_WORK_DIR
    if uses_platform_storage(resource):
        root = _default_checkpoint_root(settings)
    else:
        root = mounted(resource.spec.checkpoint.uri or "", VOLUME_ROOT).removeprefix("file://")
    return f"{root.rstrip('/')}/.work/{uid}"
