"""The next move of rollout.canary: which version answers, which is tried beside it, and on how many requests. Pure.

Everything is decided from the spec, the status as it stands and what the replicas count, so that an operator that is
started anew goes on where the last one was. Replicas count from when they got their share: nothing is kept of them.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from plinth_api.model_service import Canary
from plinth_api.run import ServeCandidate, ServeModel
from plinth_api.service_state import CandidateState, VersionCounts
from plinth_api.status import RolloutStatus, ServiceStatus
from plinth_operator.facts import Observed
from plinth_operator.status.rollout import figures, judge

TICK_SECONDS = 5.0
"""How often a step is looked at."""

_REFRESH = timedelta(seconds=30)
"""Between two writes of numbers while nothing is decided."""

_SLACK = timedelta(seconds=30)
_MAX_RESTARTS = 2


@dataclass(frozen=True, slots=True)
class _Step:
    """A rollout as it stands and all that its next move depends on."""

    canary: Canary
    rollout: RolloutStatus
    seen: Observed
    generation: int
    now: datetime

    @property
    def weight(self) -> int:
        return self.canary.steps[min(self.rollout.step, len(self.canary.steps) - 1)]

    @property
    def told(self) -> list[CandidateState]:
        """What each replica says of the candidate."""
        by_id = {replica.replica_id: replica.candidate for replica in self.seen.all_replicas}
        return [told for told in by_id.values() if told is not None and told.uri == self.rollout.candidate.uri]

    def becomes(self, **changes: object) -> RolloutStatus:
        return self.rollout.model_copy(update={"generation": self.generation, **changes})


def plan_rollout(
    canary: Canary | None,
    wanted: ServeModel,
    old: ServiceStatus,
    seen: Observed,
    *,
    generation: int,
    now: datetime,
) -> tuple[ServeModel, RolloutStatus | None]:
    """What replicas are told, and the rollout's new status, None where there is none.

    Args:
        canary: How a new version takes over; None for at once.
        wanted: What the spec asks for, with the newest version.
        old: The service's status as it stands.
        seen: What is known of its surroundings.
        generation: Of the spec.
        now: The time.
    """
    if canary is None:
        return wanted, None
    before, stable = old.rollout, _stable_uri(old)
    if before is not None and before.candidate.uri == wanted.uri:
        if before.phase == "Promoted":
            return wanted, before
        if before.phase == "Progressing":
            rollout = _progressed(_Step(canary, before, seen, generation, now))
            return _told_to_replicas(wanted, rollout), rollout
        if before.generation == generation:
            return _told_to_replicas(wanted, before), before
    if not seen.ray_services or stable in ("", wanted.uri):
        return wanted, None
    rollout = RolloutStatus(
        phase="Progressing",
        reason="Loading",
        message=_loading(wanted.uri, stable),
        step=0,
        weight=canary.steps[0],
        since=_whole(now),
        stable=figures(stable),
        candidate=figures(wanted.uri),
        generation=generation,
    )
    return _told_to_replicas(wanted, rollout), rollout


def _stable_uri(old: ServiceStatus) -> str:
    """The version to fall back on: what answers, unless a rollout has decided since."""
    if old.rollout is not None:
        return old.rollout.candidate.uri if old.rollout.phase == "Promoted" else old.rollout.stable.uri
    return old.model.uri if old.model else ""


def _told_to_replicas(wanted: ServeModel, rollout: RolloutStatus) -> ServeModel:
    if rollout.phase == "Promoted":
        return wanted
    candidate = None
    if rollout.phase == "Progressing":
        candidate = ServeCandidate(uri=rollout.candidate.uri, weight=rollout.weight)
    return wanted.model_copy(update={"uri": rollout.stable.uri, "candidate": candidate})


def _progressed(step: _Step) -> RolloutStatus:
    rollout = step.rollout
    uri = rollout.candidate.uri
    if any(replica.target_uri == uri for replica in step.seen.all_replicas):
        return _ended(step, "Promoted", "Passed", f"{uri} answers all requests")
    failed = next((told for told in step.told if told.failed), None)
    if failed is not None:
        return _rolled_back(step, "CandidateNotLoaded", f"it cannot be loaded: {failed.load_error}")
    if step.weight != rollout.weight:
        return _begun(step, rollout.step, rollout.message)
    counting = [told for told in step.told if told.loaded and told.weight == rollout.weight]
    if not counting:
        error = next((told.load_error for told in step.told if told.load_error), "")
        text = _loading(uri, rollout.stable.uri) + (f": {error}" if error else "")
        return step.becomes(reason="Loading", message=text)
    seconds = max(told.seconds for told in counting)
    step = _counted_on(step, seconds)
    if step.rollout.restarts > _MAX_RESTARTS:
        return _rolled_back(step, "ReplicasRestarted", "all replicas ended while they tried it, for the third time")
    return _judged(step, counting, seconds)


def _judged(step: _Step, counting: list[CandidateState], seconds: float) -> RolloutStatus:
    rollout = step.rollout
    stable = sum((told.stable for told in counting), VersionCounts())
    candidate = sum((told.candidate for told in counting), VersionCounts())
    verdict = judge(step.canary, stable, candidate, seconds=seconds)
    numbers = {
        "stable": figures(rollout.stable.uri, stable),
        "candidate": figures(rollout.candidate.uri, candidate),
        "updated_at": _whole(step.now),
    }
    share = f"{rollout.weight}% of the requests went to {rollout.candidate.uri}"
    if verdict.passes is None:
        is_news = rollout.reason != verdict.reason or rollout.updated_at is None
        if not is_news and rollout.updated_at is not None and step.now - rollout.updated_at < _REFRESH:
            return step.becomes()
        return step.becomes(**numbers, reason=verdict.reason, message=f"{share}: {verdict.message}")
    step = replace(step, rollout=step.becomes(**numbers))
    if not verdict.passes:
        return _rolled_back(step, verdict.reason, verdict.message)
    if rollout.step + 1 < len(step.canary.steps):
        return _begun(step, rollout.step + 1, f"{share}, and step {rollout.step + 1} is passed: {verdict.message}")
    return _ended(step, "Promoted", "Passed", f"{rollout.candidate.uri} takes over: {verdict.message}")


def _counted_on(step: _Step, seconds: float) -> _Step:
    """With when counting began; and, where no replica counts from then on any more, one restart more."""
    rollout, began = step.rollout, step.now - timedelta(seconds=seconds)
    changes = any(service.pending is not None for service in step.seen.ray_services)
    if rollout.counting_since is None or changes or rollout.generation != step.generation:
        return replace(step, rollout=step.becomes(counting_since=_whole(began)))
    if began <= rollout.counting_since + _SLACK:
        return step
    return replace(step, rollout=step.becomes(counting_since=_whole(began), restarts=rollout.restarts + 1))


def _begun(step: _Step, number: int, message: str) -> RolloutStatus:
    number = min(number, len(step.canary.steps) - 1)
    return step.becomes(
        step=number,
        weight=step.canary.steps[number],
        since=_whole(step.now),
        reason="Counting",
        message=message,
        counting_since=None,
        updated_at=None,
    )


def _rolled_back(step: _Step, reason: str, why: str) -> RolloutStatus:
    stable, uri = step.rollout.stable.uri, step.rollout.candidate.uri
    todo = "it is tried again when the alias moves or the spec changes"
    return _ended(step, "RolledBack", reason, f"{uri} was taken back, and {stable} answers: {why}; {todo}")


def _ended(step: _Step, phase: str, reason: str, message: str) -> RolloutStatus:
    weight = 100 if phase == "Promoted" else 0
    return step.becomes(phase=phase, reason=reason, message=message, weight=weight, since=_whole(step.now))


def _loading(uri: str, stable: str) -> str:
    return f"{uri} is being loaded beside {stable}"


def _whole(now: datetime) -> datetime:
    return now.replace(microsecond=0)
