"""Whole rollouts of a new version, played against replicas that count: nothing is kept but the status.

Longer than others, as all of them are played by the one small world at its beginning.
"""

import math
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from plinth_api.model_service import Canary
from plinth_api.run import ServeCandidate, ServeModel
from plinth_api.service_state import CandidateState, Samples, VersionCounts
from plinth_api.status import ModelStatus, RolloutStatus, ServiceStatus
from plinth_operator.facts import ApplicationFacts, Observed, RayServiceFacts, ReplicaState
from plinth_operator.plan.rollout import plan_rollout
from plinth_operator.status.rollout import rollout_news
from rendering import UID

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)
V3, V4, V5 = (f"models:/team-a.tiny-chat/{number}" for number in (3, 4, 5))
CANARY = Canary(steps=(10, 50), interval_seconds=60)


def times(count: int, mean: float, spread: float = 0.0) -> Samples:
    return Samples(count=count, total=count * mean, squares=count * (mean**2 + spread**2))


@dataclass
class Manners:
    """How a version behaves."""

    error_rate: float = 0.0
    first_token: float = 0.1
    output_token: float = 0.01
    load_error: str = ""
    hangs: bool = False


@dataclass
class Replica:
    """Loads what it is told, swaps, splits its requests by the weight, and counts."""

    name: str
    uri: str = V3
    started: int = 0
    since: datetime = BEGAN
    candidate: ServeCandidate | None = None
    counts: dict[str, VersionCounts] = field(default_factory=dict)

    def told(self, model: ServeModel, now: datetime) -> None:
        self.uri = model.uri
        if model.candidate != self.candidate:
            self.candidate, self.since, self.counts = model.candidate, now, {}

    def restart(self, now: datetime) -> None:
        self.started, self.since, self.counts = self.started + 1, now, {}

    def serve(self, requests: int, manners: dict[str, Manners]) -> None:
        if self.candidate is None or manners[self.candidate.uri].load_error:
            return
        tried = requests * self.candidate.weight // 100
        for uri, count in ((self.candidate.uri, tried), (self.uri, requests - tried)):
            how = manners[uri]
            before = self.counts.get(uri, VersionCounts())
            if how.hangs:
                self.counts[uri] = before + VersionCounts(running=count)
                continue
            more = VersionCounts(
                requests=count,
                errors=math.ceil(count * how.error_rate),
                first_token=times(count, how.first_token, 0.02),
                output_token=times(count, how.output_token, 0.001),
            )
            self.counts[uri] = before + more

    def state(self, now: datetime, manners: dict[str, Manners]) -> ReplicaState:
        told = None
        if self.candidate is not None:
            uri = self.candidate.uri
            error = manners[uri].load_error
            told = CandidateState(
                uri=uri,
                weight=self.candidate.weight,
                loaded=not error,
                load_error=error or None,
                failed=bool(error),
                seconds=0.0 if error else (now - self.since).total_seconds(),
                stable=self.counts.get(self.uri, VersionCounts()),
                candidate=self.counts.get(uri, VersionCounts()),
            )
        return ReplicaState(self.uri, self.uri, "", now, replica_id=f"{self.name}-{self.started}", candidate=told)


class Service:
    """A service with version 3 in use, its operator and its replicas, five seconds after five seconds."""

    def __init__(self, *names: str, requests: int = 100) -> None:
        self.now = BEGAN
        self.canary: Canary | None = CANARY
        self.generation = 1
        self.version = V3
        self.requests = requests
        self.manners = {V3: Manners(), V4: Manners(), V5: Manners()}
        self.replicas = [Replica(name) for name in names or ("a",)]
        self.told = ServeModel(uri=V3)
        self.answers: str | None = V3
        self.rollout: RolloutStatus | None = None
        self.pending: ApplicationFacts | None = None
        self.stories: list[tuple[str, int]] = []
        self.events: list[str] = []

    def observed(self) -> Observed:
        known = RayServiceFacts("RayService", "team-a", "s", "s", UID, 1, pending=self.pending)
        states = tuple(replica.state(self.now, self.manners) for replica in self.replicas)
        return Observed(ray_services=(known,), replicas=states)

    def status(self, rollout: RolloutStatus | None) -> ServiceStatus:
        model = ModelStatus(name="tiny-chat", version="3", uri=self.answers) if self.answers else None
        return ServiceStatus(model=model, rollout=rollout)

    def tick(self, *, keeps_status: bool = True) -> None:
        for replica in self.replicas:
            replica.serve(self.requests, self.manners)
        self.now += timedelta(seconds=5)
        old = self.status(self.rollout)
        self.told, rollout = plan_rollout(
            self.canary,
            ServeModel(uri=self.version),
            old,
            self.observed(),
            generation=self.generation,
            now=self.now,
        )
        for replica in self.replicas:
            replica.told(self.told, self.now)
        if not keeps_status:
            return
        news = rollout_news(old.to_wire(), self.status(rollout).to_wire())
        self.events += [news[0]] if news else []
        self.rollout = rollout
        if rollout is not None and self.stories[-1:] != [(rollout.phase, rollout.weight)]:
            self.stories.append((rollout.phase, rollout.weight))

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / 5)):
            self.tick()

    @property
    def tried(self) -> tuple[str, int] | None:
        """What is tried beside version 3, and its weight."""
        candidate = self.told.candidate
        assert candidate is None or self.told.uri == V3
        return (candidate.uri, candidate.weight) if candidate else None

    @property
    def progress(self) -> RolloutStatus:
        assert self.rollout is not None
        return self.rollout

    @property
    def is_switched(self) -> bool:
        return self.told == ServeModel(uri=self.version)


def test_a_new_version_gets_its_steps_and_then_everything():
    service = Service("a", "b")
    service.tick()
    assert (service.is_switched, service.rollout) == (True, None)
    service.version = V4
    service.tick()
    assert service.tried == (V4, 10)
    service.run(65)
    assert service.tried == (V4, 50)
    service.run(65)
    assert service.is_switched
    assert service.stories == [("Progressing", 10), ("Progressing", 50), ("Promoted", 100)]
    assert service.events == ["CanaryProgressing", "CanaryProgressing", "CanaryPromoted"]
    service.answers = V4
    service.run(600)
    assert (service.is_switched, len(service.stories)) == (True, 3)
    service.version = V5
    service.tick()
    assert service.told == ServeModel(uri=V4, candidate=ServeCandidate(uri=V5, weight=10))


def test_the_status_tells_the_numbers_of_all_replicas_each_once():
    service = Service("a", "b")
    service.manners[V4] = Manners(first_token=0.11)
    service.version = V4
    service.run(60)
    stable, candidate = service.progress.stable, service.progress.candidate
    assert candidate.requests > 0
    assert candidate.requests % 20 == 0
    assert stable.requests == 9 * candidate.requests
    assert candidate.first_token_seconds == pytest.approx(0.11)
    assert (stable.uri, stable.error_rate, stable.output_token_seconds) == (V3, 0.0, 0.01)
    alone = service.observed()
    twice = replace(alone, replicas=(*alone.replicas, alone.replicas[0]))
    old = service.status(service.progress.model_copy(update={"updated_at": None}))
    counted = [
        plan_rollout(CANARY, ServeModel(uri=V4), old, seen, generation=1, now=service.now) for seen in (alone, twice)
    ]
    assert counted[0] == counted[1]


def test_numbers_are_written_every_half_minute_while_nothing_is_decided():
    service = Service()
    service.version = V4
    service.run(20)
    statuses = set()
    for _ in range(8):
        service.tick()
        statuses.add(service.progress.model_dump_json())
    assert len(statuses) <= 3


@pytest.mark.parametrize(
    ("manners", "reason", "words"),
    [
        pytest.param(Manners(error_rate=0.2), "HighErrorRate", "requests failed; maxErrorRate is 0.01", id="errors"),
        pytest.param(
            Manners(first_token=0.2), "HighLatency", "the first token takes 0.2 s, and 0.1 s with", id="waiting"
        ),
        pytest.param(Manners(output_token=0.02), "HighLatency", "each later token takes 0.02 s, and 0.01", id="pace"),
        pytest.param(
            Manners(load_error="it is damaged"), "CandidateNotLoaded", "cannot be loaded: it is damaged", id="loading"
        ),
    ],
)
def test_a_version_that_is_worse_is_taken_back_and_not_tried_again(manners: Manners, reason: str, words: str):
    service = Service()
    service.manners[V4] = manners
    service.version = V4
    service.run(90)
    assert service.told == ServeModel(uri=V3)
    assert (service.progress.phase, service.progress.reason, service.progress.weight) == ("RolledBack", reason, 0)
    assert words in service.progress.message
    assert service.events == ["CanaryProgressing", "CanaryRolledBack"]
    service.run(600)
    assert (service.told, service.stories[-1]) == (ServeModel(uri=V3), ("RolledBack", 0))


def test_errors_that_cannot_be_made_good_end_it_before_the_interval_does():
    service = Service()
    service.manners[V4] = Manners(error_rate=0.2)
    service.version = V4
    service.run(20)
    assert service.progress.reason == "HighErrorRate"


def test_differences_that_may_be_chance_or_are_allowed_take_no_version_back():
    service = Service()
    service.manners[V4] = Manners(first_token=0.119, output_token=0.0119)
    service.version = V4
    service.run(150)
    assert service.progress.phase == "Promoted"


def test_a_version_that_was_taken_back_is_tried_again_when_the_spec_changes():
    service = Service()
    service.manners[V4] = Manners(error_rate=1.0)
    service.version = V4
    service.run(30)
    service.manners[V4] = Manners()
    service.generation = 2
    service.run(160)
    assert service.stories[-3:] == [("Progressing", 10), ("Progressing", 50), ("Promoted", 100)]


def test_a_newer_version_starts_anew_from_the_one_that_answers():
    service = Service()
    service.version = V4
    service.run(80)
    assert service.tried == (V4, 50)
    service.version = V5
    service.tick()
    assert service.tried == (V5, 10)
    assert service.progress.candidate.uri == V5


def test_an_alias_that_goes_back_ends_it_and_may_come_again():
    service = Service()
    service.manners[V4] = Manners(error_rate=1.0)
    service.version = V4
    service.run(30)
    service.version = V3
    service.tick()
    assert (service.rollout, service.is_switched) == (None, True)
    service.version = V4
    service.tick()
    assert service.tried == (V4, 10)


def test_without_canary_it_is_switched_at_once():
    service = Service()
    service.version = V4
    service.run(20)
    service.canary = None
    service.tick()
    assert (service.is_switched, service.rollout) == (True, None)


def test_few_requests_hold_a_step_and_an_idle_service_goes_on_after_three_intervals():
    service = Service(requests=0)
    service.version = V4
    service.run(90)
    assert (service.progress.reason, service.tried) == ("TooFewRequests", (V4, 10))
    assert "after 180 s it goes on with what there is" in service.progress.message
    service.run(110)
    assert service.tried == (V4, 50)
    service.run(190)
    assert service.progress.phase == "Promoted"


def test_one_failure_among_few_requests_is_too_many_once_all_time_has_passed():
    service = Service(requests=0)
    service.version = V4
    service.run(20)
    service.manners[V4] = Manners(error_rate=0.01)
    service.requests = 10
    service.tick()
    service.requests = 0
    service.run(100)
    assert service.progress.phase == "Progressing"
    service.run(80)
    assert service.progress.reason == "HighErrorRate"


def test_requests_that_do_not_end_are_no_idleness():
    service = Service()
    service.manners[V4] = Manners(hangs=True)
    service.version = V4
    service.run(600)
    assert (service.progress.reason, service.tried) == ("TooFewRequests", (V4, 10))
    assert "requests of the new version and 0 of the old one run" in service.progress.message
    service.manners[V4] = Manners(error_rate=1.0)
    service.run(5)
    assert service.progress.reason == "HighErrorRate"


def test_five_slow_requests_are_enough_where_no_more_come():
    service = Service(requests=0)
    service.manners[V4] = Manners(output_token=0.05)
    service.version = V4
    service.run(20)
    service.requests = 50
    service.tick()
    service.requests = 0
    service.run(180)
    assert service.progress.reason == "HighLatency"


def test_an_operator_that_is_killed_before_it_writes_the_status_goes_on_safely():
    service = Service()
    service.version = V4
    for _ in range(60):
        service.tick(keeps_status=False)
        service.tick()
        if service.progress.phase == "Promoted":
            break
    assert service.stories == [("Progressing", 10), ("Progressing", 50), ("Promoted", 100)]


def test_a_promotion_that_was_told_to_replicas_only_is_not_taken_back():
    service = Service()
    service.version = V4
    service.run(120)
    for _ in range(10):
        service.tick(keeps_status=False)
    assert service.is_switched
    service.tick()
    assert (service.progress.phase, service.is_switched) == ("Promoted", True)


def test_counts_that_fall_with_a_restart_are_counted_as_they_are():
    service = Service("a", "b")
    service.version = V4
    service.run(60)
    service.replicas[0].restart(service.now)
    service.run(5)
    assert service.tried == (V4, 50)
    service.run(30)
    service.replicas[0].restart(service.now)
    service.run(40)
    assert (service.progress.phase, service.progress.restarts) == ("Promoted", 0)


def test_a_version_with_which_all_replicas_end_is_taken_back_at_the_third_time():
    service = Service()
    service.version = V4
    for _ in range(3):
        service.run(45)
        service.replicas[0].restart(service.now)
        assert service.progress.phase == "Progressing"
    service.run(10)
    assert service.progress.reason == "ReplicasRestarted"


def test_replicas_of_a_new_cluster_are_no_restart():
    service = Service()
    service.version = V4
    service.run(10)
    for _ in range(4):
        service.pending = ApplicationFacts("c2", "DEPLOYING")
        service.run(40)
        service.replicas[0].restart(service.now)
        service.tick()
        service.pending = None
    assert service.progress.restarts == 0


def test_while_no_replica_answers_nothing_is_decided():
    service = Service()
    service.version = V4
    service.run(10)
    service.replicas = []
    service.run(300)
    assert (service.progress.phase, service.progress.reason) == ("Progressing", "Loading")
    assert service.tried == (V4, 10)


def test_a_share_that_the_spec_changes_begins_at_once():
    service = Service()
    service.version = V4
    service.run(20)
    service.canary, service.generation = Canary(steps=(25,), interval_seconds=60), 2
    service.tick()
    assert service.tried == (V4, 25)
    service.run(70)
    assert service.progress.phase == "Promoted"


def test_a_service_whose_first_version_does_not_answer_yet_has_nothing_to_fall_back_on():
    service = Service()
    service.answers, service.version = None, V4
    service.tick()
    assert (service.is_switched, service.rollout) == (True, None)
