"""Names that the operator writes on objects and reads back from them."""

GROUP = "plinth.dev"
VERSION = "v1alpha1"
FIELD_MANAGER = "plinth"

UID_LABEL = "plinth.dev/uid"
"""The uid of the owning resource, on every child, and on the pods that KubeRay makes from our templates."""

NAME_LABEL = "plinth.dev/name"
KIND_LABEL = "plinth.dev/kind"
ATTEMPT_LABEL = "plinth.dev/attempt"
ENGINE_LABEL = "plinth.dev/engine"
"""On pods and Service of what vLLM serves, whose metrics are at another port than those of the torch engine."""

VOLUME_ROOT = "/mnt/plinth/volumes"
"""In our pods pvc://claim/path is VOLUME_ROOT/claim/path; what they say of it is told as pvc:// again."""

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
"""Kueue's own WorkloadPriorityClass, which is not the pods' priorityClassName."""

HASH_ANNOTATION = "plinth.dev/hash"
"""Hash of the manifest as we rendered it: a child is applied again only when this differs."""

SPEC_HASH_ANNOTATION = "plinth.dev/spec-hash"
"""Hash of the part of the spec that an attempt was rendered from."""

GENERATION_ANNOTATION = "plinth.dev/generation"
"""metadata.generation of the resource that an attempt was rendered from."""

CLUSTER_HASH_ANNOTATION = "plinth.dev/cluster-hash"
"""Hash of a RayService's cluster: when it differs, KubeRay starts a second cluster."""

RAY_CLUSTER_LABEL = "ray.io/cluster"
"""KubeRay's, on every pod."""

UID_TAG = "plinth.uid"
CLUSTER_TAG = "plinth.cluster"
