"""What is said of a service that may have no replica, and of one whose model is being loaded. Pure.

Enters: where a service stands by its replicas. Leaves: the same, unless there is none because nobody asks: such a
service answers, as Ray Serve holds the next request until there is one.
"""

from dataclasses import replace

from plinth_api.run import ServeModel
from plinth_api.status import ModelStatus
from plinth_operator.facts import RayServiceFacts, ReplicaState
from plinth_operator.status.reasons import Cause
from plinth_operator.status.services import ServiceVerdict

_STEADY = "HEALTHY"
"""Of a Serve deployment that has as many replicas as it wants; UPSCALING while one is made."""


def with_load_progress(verdict: ServiceVerdict, replica: ReplicaState | None) -> ServiceVerdict:
    """The verdict, telling how far the loading of a version is where nothing else is to be told."""
    if verdict.cause is not None or replica is None or not replica.loading:
        return verdict
    return replace(verdict, change="; ".join(words for words in (verdict.change, replica.loading) if words))


def at_zero(
    verdict: ServiceVerdict,
    ray_service: RayServiceFacts | None,
    replica: ReplicaState | None,
    target: ServeModel,
    last: ModelStatus | None,
) -> ServiceVerdict:
    """The verdict on a service that scales to zero.

    Args:
        verdict: As of a service that does not, with what its rollout and its loading tell.
        ray_service: The RayService; None where it is yet to be made.
        replica: What a replica last said of itself.
        target: The version that is asked for.
        last: What was in service last.
    """
    if verdict.phase != "Starting" or ray_service is None or not ray_service.ready or ray_service.pending is not None:
        return verdict
    was_in_service = last is not None and (last.uri, last.prompt_hash or "") == (target.uri, target.prompt_hash)
    if verdict.cause is not None or not was_in_service or ray_service.active is None:
        return verdict
    words = "a replica is started, and requests wait for it"
    if replica is None and ray_service.active.deployment == _STEADY:
        words = "no replica, as nobody asks; the next request waits until there is one"
    return replace(
        verdict,
        # A version that is tried has a replica started for it.
        phase="Updating" if target.candidate else "Ready",
        cause=Cause("ScaledToZero", "; ".join(part for part in (words, verdict.change) if part)),
        model_uri=target.uri,
        prompt_hash=target.prompt_hash,
        adapters=tuple((adapter.name, adapter.uri) for adapter in target.adapters),
        answering=True,
    )
