"""ModelService: serve a model over an OpenAI-compatible API, following an alias."""

import hashlib
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plinth_api.base import ApiModel, LongText, Name, ObjectMeta, ObjectName, Quantity, Rule, SecretRef
from plinth_api.common import ModelRef, PodOptions, Resources, Uri
from plinth_api.job import name_rules
from plinth_api.status import ServiceStatus

MAX_SERVICE_NAME_LENGTH = 41
"""A RayService's name is at most 47 characters; the platform appends `-<5 of uid>`."""

SERVICE_COLUMNS: tuple[dict[str, object], ...] = (
    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
    {"name": "Reason", "type": "string", "jsonPath": ".status.reason"},
    {"name": "Model", "type": "string", "jsonPath": ".status.model.name"},
    {"name": "Version", "type": "string", "jsonPath": ".status.model.version"},
    {"name": "Ready", "type": "integer", "jsonPath": ".status.readyReplicas"},
    {"name": "GPUs", "type": "integer", "jsonPath": ".status.usage.gpus"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "URL", "type": "string", "jsonPath": ".status.url", "priority": 1},
    {"name": "Message", "type": "string", "jsonPath": ".status.message", "priority": 1},
)


class Adapter(ApiModel):
    """A LoRA adapter served beside the base model."""

    name: Name = Field(description="name that requests give as their model.")
    uri: Uri = Field(description="uri of the adapter: models:/name@alias.")


class PromptExample(ApiModel):
    """One exchange that every chat starts with."""

    user: LongText = Field(description="user's turn.")
    assistant: LongText = Field(description="assistant's answer.")


class PromptTemplate(ApiModel):
    """What every chat starts with."""

    system: LongText | None = Field(default=None, description="system message.")
    examples: Annotated[tuple[PromptExample, ...], Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="examples of exchanges, in order."
    )

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that change with it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]


class ServiceCompute(PodOptions):
    """The replicas of a service."""

    per_replica: Resources = Field(default=Resources(), description="perReplica is what one replica asks for.")
    tensor_parallel: int = Field(
        default=1, ge=1, le=64, description="tensorParallel splits one replica over so many GPUs; engine vllm."
    )


class Scaling(ApiModel):
    """How many replicas there are."""

    rules = (
        Rule(
            cel="self.minReplicas <= self.maxReplicas",
            check=lambda scaling: scaling.min_replicas <= scaling.max_replicas,
            message="minReplicas must be at most maxReplicas",
        ),
    )

    min_replicas: int = Field(
        default=1,
        ge=0,
        le=1024,
        description="minReplicas; with 0 the last replica goes after idleSeconds, and the next request waits for one.",
    )
    max_replicas: int = Field(default=1, ge=1, le=1024, description="maxReplicas of the service.")
    target_ongoing_requests: int = Field(
        default=16, ge=1, le=100000, description="targetOngoingRequests of one replica that autoscaling aims at."
    )
    idle_seconds: int = Field(
        default=300,
        ge=1,
        le=86400,
        description="idleSeconds without a request after which the last replica goes, where minReplicas is 0.",
    )


class Canary(ApiModel):
    """How a new model version takes over the traffic."""

    steps: Annotated[tuple[Annotated[int, Field(ge=1, le=99)], ...], Field(min_length=1, max_length=16)] = Field(
        default=(10, 50), description="steps in percent of the requests for the base model."
    )
    interval_seconds: int = Field(
        default=300, ge=1, le=86400, description="intervalSeconds of each step; three of them where requests are few."
    )
    max_error_rate: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="maxErrorRate: the share of the new version's requests that may end in 5xx.",
    )
    max_latency_increase: float = Field(
        default=0.2,
        ge=0,
        le=100,
        description="maxLatencyIncrease of the times to the first token and of each later one against the old version, "
        "as a fraction.",
    )


class Rollout(ApiModel):
    """How changes take effect."""

    cluster_change: Literal["Surge", "Recreate"] = Field(
        default="Surge",
        description="clusterChange says what a change of image or compute does: Surge starts a second cluster first, "
        "Recreate stops the old one first. A new model version is taken over in place, by engine vllm in new replicas.",
    )
    canary: Canary | None = Field(default=None, description="canary moves traffic to a new model version step by step.")


class Ingress(ApiModel):
    """How the service is reached from outside the cluster."""

    host: ObjectName = Field(description="host name.")
    class_name: ObjectName | None = Field(default=None, description="className of the ingress controller.")
    tls_secret_ref: SecretRef | None = Field(
        default=None, description="tlsSecretRef names the Secret with the certificate."
    )


class Access(ApiModel):
    """Who may ask."""

    api_key_secret_ref: SecretRef | None = Field(
        default=None, description="apiKeySecretRef names the Secret whose values are accepted as API keys."
    )
    ingress: Ingress | None = Field(default=None, description="ingress makes the service reachable from outside.")


class Limits(ApiModel):
    """What one request may ask for; a change counts in place, without new replicas."""

    max_body_bytes: Quantity = Field(
        default="4Mi", description="maxBodyBytes of a request's body, 1Ki to 1Gi; a larger one is refused with 413."
    )
    max_prompt_tokens: int | None = Field(
        default=None, ge=1, description="maxPromptTokens of a prompt; a longer one is refused. Default: the context's."
    )
    max_output_tokens: int | None = Field(
        default=None,
        ge=1,
        description="maxOutputTokens of an answer: what a chat gets that does not say; asking for more is refused. "
        "Default: the context's.",
    )
    request_timeout_seconds: int = Field(
        default=600,
        ge=1,
        le=86400,
        description="requestTimeoutSeconds of a request, waiting included; one that takes longer ends with 504, or "
        "with an error in its stream.",
    )


class ModelServiceSpec(ApiModel):
    """Which model to serve, with what, and how it scales and changes."""

    model: ModelRef = Field(description="model to serve; an alias is followed.")
    adapters: Annotated[tuple[Adapter, ...], Field(min_length=1, max_length=256)] | None = Field(
        default=None, description="adapters served beside the model."
    )
    engine: Literal["auto", "torch", "vllm"] = Field(
        default="auto",
        description="engine; auto is vllm on GPUs where the platform has an image with it, task is given and vllm does "
        "all that is asked for, else torch.",
    )
    task: Literal["auto", "generate", "embed", "classify"] = Field(
        default="auto",
        description="task: generate text, embed texts or classify them; auto is told from the model's own files.",
    )
    compile: bool | None = Field(
        default=None,
        description="compile the model with torch.compile, on GPUs with CUDA graphs: starting takes longer, each token "
        "less. When left out, engine vllm does and engine torch does not.",
    )
    prompt: PromptTemplate | None = Field(default=None, description="prompt that every chat starts with.")
    compute: ServiceCompute = Field(default=ServiceCompute(), description="compute of the replicas.")
    scaling: Scaling = Field(default=Scaling(), description="scaling of the replicas.")
    rollout: Rollout = Field(default=Rollout(), description="rollout of changes.")
    access: Access = Field(default=Access(), description="access to the service.")
    limits: Limits = Field(default=Limits(), description="limits of each request.")


class ModelService(ApiModel):
    """ModelService serves a model on Ray Serve behind an OpenAI-compatible API."""

    rules: ClassVar[tuple[Rule, ...]] = name_rules(MAX_SERVICE_NAME_LENGTH)

    api_version: Literal["plinth.dev/v1alpha1"] = Field(description="apiVersion of the resource.")
    kind: Literal["ModelService"] = Field(description="kind of the resource.")
    metadata: ObjectMeta = Field(description="metadata of the resource.")
    spec: ModelServiceSpec = Field(description="spec is what the user asks for.")
    status: ServiceStatus | None = Field(default=None, description="status is what the operator has seen.")
