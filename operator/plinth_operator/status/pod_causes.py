"""What one pod's facts say of why it does not run, and of how it ended."""

import re
from collections.abc import Callable, Iterable, Sequence

from plinth_operator.facts import ContainerFacts, PodFacts
from plinth_operator.status.reasons import Cause

_IMAGE_WAITS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
_START_FAILURES = frozenset({"CreateContainerError", "RunContainerError", "PostStartHookError"})
_PREEMPTIONS = frozenset({"PreemptionByScheduler", "PreemptionByKubeScheduler", "Preempting", "Preempted"})
_NODE_REASONS = frozenset({"Evicted", "NodeLost", "NodeShutdown", "Shutdown", "Terminated", "NodeAffinity"})
_OBJECT_WORDS = re.compile(r'(secret|configmap)\b.*?"?([a-z0-9][-a-z0-9.]*)"? not found', re.IGNORECASE)
_KEY_WORDS = re.compile(r"couldn't find key (\S+) in (Secret|ConfigMap) (?:\S+/)?([-a-z0-9.]+)", re.IGNORECASE)
ENDS_OF_PODS = frozenset({"Preempted", "HostOutOfMemory", "NodeLost"})
"""The reasons of `ended_pod_cause`."""

_SUBMITTER = "ray-job-submitter"
"""Container of KubeRay in the head pod, in SidecarMode."""
_MOST_CHARACTERS = 1000


def waiting_pod_cause(pods: Iterable[PodFacts]) -> Cause | None:
    """Why pods that should run do not: what the user can mend comes before what may mend itself."""
    looks = (_image_cause, _config_cause, _start_cause, _crash_cause, _unschedulable_cause, _rejected_cause)
    return _first_cause(looks, [pod for pod in pods if not pod.deleting])


def ended_pod_cause(pods: Iterable[PodFacts]) -> Cause | None:
    """What was done to pods from outside: preempted, out of memory, their node lost; not a crash of their own."""
    return _first_cause((_preempted_cause, _memory_cause, _node_cause), pods)


def crashed_pod_cause(pods: Iterable[PodFacts]) -> Cause | None:
    """The first container of a Ray pod that ended with an error; pods that are being deleted end like that too."""
    return _first_cause((_crash_cause,), [pod for pod in pods if not pod.deleting])


def _first_cause(looks: Sequence[Callable[[PodFacts], Cause | None]], pods: Iterable[PodFacts]) -> Cause | None:
    """The first cause in the order of `looks`, of the head before the workers."""
    ordered = sorted(pods, key=lambda pod: (pod.role != "head", pod.name))
    return next((cause for look in looks for pod in ordered if (cause := look(pod)) is not None), None)


def ray_containers(pod: PodFacts) -> tuple[ContainerFacts, ...]:
    """Those that run Ray: a submitter ends with an error when the program does, which says nothing of the pod."""
    if pod.role == "submitter":
        return ()
    return tuple(container for container in pod.containers if container.name != _SUBMITTER)


def shorten(words: str) -> str:
    """The words on one line, at a length that fits a status."""
    joined = " ".join(words.split())
    return joined if len(joined) <= _MOST_CHARACTERS else joined[: _MOST_CHARACTERS - 3] + "..."


def place(pod: PodFacts) -> str:
    """The pod in words: worker pod x on node y."""
    return f"{pod.role} pod {pod.name}" + (f" on node {pod.node}" if pod.node else "")


def _image_cause(pod: PodFacts) -> Cause | None:
    for container in pod.containers:
        if container.waiting in _IMAGE_WAITS:
            words = shorten(container.message) or container.waiting
            return Cause(
                "ImagePullFailed",
                f"{place(pod)} cannot pull image {container.image or 'of container ' + container.name}: {words}; "
                "check the image's name and tag, and that spec.compute.imagePullSecrets has one for a private registry",
            )
    return None


def _config_cause(pod: PodFacts) -> Cause | None:
    for container in pod.containers:
        if container.waiting == "CreateContainerConfigError":
            return _missing_object(pod, container)
    return None


def _missing_object(pod: PodFacts, container: ContainerFacts) -> Cause:
    where = f"container {container.name} of {place(pod)}"
    if found := _KEY_WORDS.search(container.message):
        key, kind, name = found.groups()
    elif found := _OBJECT_WORDS.search(container.message):
        key, (kind, name) = "", found.groups()
    else:
        words = shorten(container.message) or container.waiting
        return Cause("ContainerCrashed", f"{where} cannot be configured: {words}")
    kind = "Secret" if kind.lower() == "secret" else "ConfigMap"
    what = f"key {key} of {kind} {name}" if key else f"{kind} {name}"
    todo = "create it in the namespace, or correct the name; the pod starts by itself then"
    return Cause(f"{kind}NotFound", f"{where} needs {what}, which does not exist; {todo}")


def _start_cause(pod: PodFacts) -> Cause | None:
    for container in pod.containers:
        if container.waiting in _START_FAILURES:
            words = shorten(container.message) or container.waiting
            return Cause(
                "ContainerCrashed",
                f"container {container.name} of {place(pod)} cannot be started: {words}; check the image and its "
                f"command, and kubectl describe pod {pod.name} -n {pod.namespace}",
            )
    return None


def _crash_cause(pod: PodFacts) -> Cause | None:
    for container in ray_containers(pod):
        if container.terminated == "OOMKilled":
            return _out_of_memory(pod, container)
        if container.terminated and container.exit_code:
            words = f" ({shorten(container.message)})" if container.message else ""
            again = f", {container.restarts} times so far" if container.restarts > 1 else ""
            option = " --previous" if container.waiting else ""
            return Cause(
                "ContainerCrashed",
                f"container {container.name} of {place(pod)} ended with exit code {container.exit_code}{words}{again}; "
                f"see kubectl logs {pod.name} -c {container.name} -n {pod.namespace}{option}",
            )
    return None


def _unschedulable_cause(pod: PodFacts) -> Cause | None:
    if not pod.unschedulable:
        return None
    advice = "ask for less in spec.compute, or let nodes be added or freed"
    if "PersistentVolumeClaim" in pod.unschedulable:
        advice = "kubectl describe pvc says what its claims wait for"
    return Cause("Unschedulable", f"no node can take {place(pod)}: {shorten(pod.unschedulable)}; {advice}")


def _rejected_cause(pod: PodFacts) -> Cause | None:
    """A pod that its node would not start, or that was evicted, before the job ran."""
    if pod.phase != "Failed":
        return None
    return _preempted_cause(pod) or _node_cause(pod) or _refused_by_node(pod)


def _refused_by_node(pod: PodFacts) -> Cause | None:
    if not pod.reason:
        return None
    return Cause(
        "NodeLost", f"{place(pod)} was refused by the node ({pod.reason}): {shorten(pod.message)}".rstrip(": ")
    )


def _preempted_cause(pod: PodFacts) -> Cause | None:
    if pod.disruption not in _PREEMPTIONS and pod.reason not in _PREEMPTIONS:
        return None
    words = f": {shorten(pod.message)}" if pod.message else ""
    return Cause("Preempted", f"{place(pod)} made room for a pod of a higher priority{words}")


def _memory_cause(pod: PodFacts) -> Cause | None:
    killed = (c for c in pod.containers if "OOMKilled" in (c.terminated, c.last_terminated))
    return next((_out_of_memory(pod, container) for container in killed), None)


def _out_of_memory(pod: PodFacts, container: ContainerFacts) -> Cause:
    todo = (
        "raise compute.perWorker.memory (compute.perReplica.memory of a service), or lower training.microBatchSize"
        if pod.role == "worker"
        else "ask the platform team for more memory of that pod"
    )
    where = f"container {container.name} of {place(pod)}"
    return Cause("HostOutOfMemory", f"{where} used more memory than its limit and was killed; {todo}")


def _node_cause(pod: PodFacts) -> Cause | None:
    if not pod.disruption and pod.reason not in _NODE_REASONS:
        return None
    words = f": {shorten(pod.message)}" if pod.message else ""
    return Cause(
        "NodeLost", f"{place(pod)} was taken away ({pod.disruption or pod.reason}){words}; see kubectl get nodes"
    )
