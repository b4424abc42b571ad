"""What the platform team decides, from the environment: images, storage, MLflow, scope."""

import os
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from plinth_api.quantity import parse_quantity

_PREFIX = "PLINTH_"


def _size(text: str) -> str:
    if text and parse_quantity(text) < 1:
        raise ValueError("must be a number of bytes such as 500Gi")
    return text


class Settings(BaseModel):
    """Every setting has a variable: `tracking_uri` is PLINTH_TRACKING_URI."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespace: str = Field(default="", description="The one namespace to serve; empty for the whole cluster.")
    operator_namespace: str = Field(default="default", description="Where the leader's Lease is.")
    cluster_name: str = Field(default="default", description="Tells this cluster's MLflow runs from those of others.")
    workload_image: str = Field(default="plinth-workloads:latest", description="Image of training and serving pods.")
    vllm_image: str = Field(
        default="", description="Image of services that vLLM serves; empty where the platform has none."
    )
    vllm_head_memory: str = Field(
        default="6Gi",
        description="Memory request and limit of the head pod of services that vLLM serves: Ray imports it there to "
        "make the application.",
    )
    ray_version: str = Field(default="2.60.0", description="Version of Ray in the workload image.")
    tracking_uri: str = Field(default="", description="MLflow's address for the operator and the workloads.")
    tracking_page: str = Field(default="", description="MLflow's address for browsers; tracking_uri when empty.")
    tracking_secret: str = Field(
        default="",
        description="Name of the Secret in a job's namespace with MLflow's credentials, for jobs that name none, and "
        "services; where it is missing, they go without.",
    )
    tracking_users: bool = Field(
        default=False,
        description="Whether MLflow has a user for each namespace, called like it, who is let write to the experiments "
        "of its jobs; the operator's credentials must be an administrator's.",
    )
    storage_claim: str = Field(
        default="plinth", description="The claim, in the job's namespace, for jobs that name no checkpoint.uri."
    )
    model_cache_claim: str = Field(
        default="",
        description="The claim, in the namespace of a service, that keeps downloaded models for all replicas of all "
        "services there; empty for a cache of each pod's own, which ends with it.",
    )
    model_cache_size: Annotated[str, AfterValidator(_size)] = Field(
        default="",
        description="What a model cache may hold, 500Gi for instance; empty for what its volume has, less a twentieth.",
    )
    queue_name: str = Field(default="", description="Kueue LocalQueue of jobs that name none; empty for none.")
    network_policies: bool = Field(default=True, description="Whether every Ray cluster gets a NetworkPolicy.")
    control_namespaces: str = Field(
        default="",
        description="Namespaces, separated by commas, that may reach Ray's dashboard and metrics: this operator's, "
        "KubeRay's, the monitoring's; empty for all.",
    )
    service_state_url: str = Field(
        default="http://{service}.{namespace}.svc:8000/-/state", description="State endpoint of a running service."
    )
    replica_state_url: str = Field(
        default="http://{ip}:8001/-/state",
        description="State endpoint of one replica: while a version is tried, and of what scales to zero.",
    )
    drain_seconds: Annotated[int, Field(ge=1)] = Field(
        default=120, description="Time that a pod that is told to stop has for saving."
    )
    head_cpus: str = Field(default="500m", description="CPU request of the head pod.")
    head_memory: str = Field(default="2Gi", description="Memory request and limit of the head pod.")
    fs_group: int = Field(
        default=1000,
        description="Group that may write to the volumes of pods; 0 or less where the cluster decides, as OpenShift "
        "does.",
    )
    workers: Annotated[int, Field(ge=1, le=256)] = Field(default=16, description="Reconciles that run at once.")
    requests_per_second: Annotated[float, Field(gt=0)] = Field(default=200.0, description="Bound on API requests.")
    resync_seconds: Annotated[float, Field(gt=0)] = Field(default=300.0, description="Time between full lists.")
    lease_seconds: Annotated[int, Field(ge=2)] = Field(default=15, description="How long a silent leader stays leader.")
    probe_port: int = Field(default=0, description="Port of /healthz and /metrics; 0 for none.")
    probe_host: str = Field(default="0.0.0.0", description="Address on which the probes listen.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Least level logged.")


class InvalidSettings(ValueError):
    """A variable that cannot be used; the message names it."""


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings from PLINTH_* variables; a variable of that prefix that is no setting is an error.

    Raises:
        InvalidSettings: With the variable's name and what is wrong.
    """
    values = {
        name.removeprefix(_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(_PREFIX) and value != ""
    }
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems = (f"{_PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        raise InvalidSettings("; ".join(problems)) from None
