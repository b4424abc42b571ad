"""Reasons in free text: what Ray, PyTorch and Kueue write, and the record that a workload prints as its last line."""

import json
import re
from collections.abc import Iterator

from plinth_api.uris import unmounted
from plinth_operator.constants import VOLUME_ROOT
from plinth_operator.status.reasons import REASONS, Cause

_MOST_LINES = 10
_MOST_CHARACTERS = 2000

_CUDA = re.compile(r"CUDA out of memory|CUDA error: out of memory|torch\.OutOfMemoryError", re.IGNORECASE)
_HOST = re.compile(r"ray\.exceptions\.OutOfMemoryError|node running low on memory|Cannot allocate memory")
_COLLECTIVE = re.compile(
    r"collective operation timeout|NCCL (error|timeout|communicator was aborted)|ncclSystemError|ncclRemoteError"
    r"|ncclInternalError|DistBackendError|DistNetworkError|DistStoreError"
    r"|gloo/transport|Timed out waiting \d+ ?ms for (recv|send)|Connection closed by peer",
    re.IGNORECASE,
)
_NODE = re.compile(r"NodeDiedError|its node has died|node .* (was|has been) (terminated|preempted)", re.IGNORECASE)
# An actor whose constructor raised "died" too, of an error of the program. Ray Train gives the words without the name.
_DIED = re.compile(
    r"(ActorDiedError|ActorUnavailableError|WorkerCrashedError|OwnerDiedError"
    r"|its worker process has died|actor died unexpectedly)(?!.*creation task)"
)
_PATTERNS = (
    (
        "CudaOutOfMemory",
        _CUDA,
        "lower training.microBatchSize or training.sequenceLength, set training.activationCheckpointing, or take more "
        "GPUs",
    ),
    ("HostOutOfMemory", _HOST, "raise compute.perWorker.memory, or lower training.microBatchSize"),
    ("NodeLost", _NODE, "see kubectl get nodes"),
    ("ContainerCrashed", _DIED, "see the logs of the worker pods"),
    (
        "CollectiveTimeout",
        _COLLECTIVE,
        "a worker hung, was slow or lost its network; its own log says why where it is known",
    ),
)


def recorded_failure(message: str) -> Cause | None:
    """The workload's own record, the last line {"plinth": "failure", ...} of the message, None where there is none.

    KubeRay keeps Ray's message with the last ten lines of the program's log, each of which may be prefixed or cut.
    """
    for line in reversed(message.splitlines()):
        for record in _objects(line):
            if record.get("plinth") == "failure" and isinstance(record.get("reason"), str):
                reason = str(record["reason"])
                text = unmounted(str(record.get("message") or reason), VOLUME_ROOT)
                return Cause(reason if reason in REASONS else "UserCodeError", text)
    return None


def known_failure(message: str) -> Cause | None:
    """The reason that a library's words stand for, with the line that has them; None where no words are known."""
    for reason, pattern, todo in _PATTERNS:
        line = next((line for line in reversed(message.splitlines()) if pattern.search(line)), None)
        if line is not None:
            return Cause(reason, f"{line.strip()[:_MOST_CHARACTERS]}; {todo}")
    return None


def last_lines(message: str) -> str:
    """The end of the message, where a traceback says what happened."""
    lines = [line.rstrip() for line in message.strip().splitlines() if line.strip()]
    return "\n".join(lines[-_MOST_LINES:])[-_MOST_CHARACTERS:]


def can_never_fit(message: str) -> bool:
    """Whether Kueue says that some pod set does not fit even an empty queue.

    Kueue 0.15 (pkg/scheduler/flavorassigner): "insufficient quota" is more than the queue can ever have, "insufficient
    unused quota" more than it has now; each pod set has a line of its own, with a clause for each flavor.
    """
    return any(
        ("insufficient quota for" in part or "unavailable in ClusterQueue" in part)
        and "insufficient unused quota" not in part
        for part in message.split("couldn't assign flavors to pod set")
    )


def _objects(line: str) -> Iterator[dict[str, object]]:
    """The JSON objects that start in the line."""
    start = line.find("{")
    while start >= 0:
        try:
            found, _ = json.JSONDecoder().raw_decode(line, start)
        except ValueError:
            found = None
        if isinstance(found, dict):
            yield found
        start = line.find("{", start + 1)
