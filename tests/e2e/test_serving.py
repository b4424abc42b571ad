"""What a service does beside answering: keys, an adapter, limits, rollouts step by step, and no replica at all.

One story on one service, in the order of its tests; each asks for the stage that it needs.
"""

import json
import secrets
import time
from functools import partial
from types import SimpleNamespace

import openai
import pytest

from asking import Asking
from cluster.control_plane import wait_until
from makers import service_document
from soak_server import write_models
from teams import Document, Team

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

NAME = "front"
KIND = "modelservice"
READY_SECONDS = 300
IDLE_SECONDS = 40
ZERO_SECONDS = 240
"""Serve hears of it every ten seconds, and KubeRay's autoscaler waits for a minute."""
CANARY = {"steps": [50], "intervalSeconds": 10, "maxLatencyIncrease": 10}
ROLLOUT_SECONDS = 180
MOST_TOKENS = 32


def uri(name: str) -> str:
    """Of one of the models on the claim."""
    return f"pvc://models/{name}"


@pytest.fixture(scope="module")
def key(team: Team) -> str:
    """An API key in a Secret, and models on a claim."""
    write_models(team.volume("models"))
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    metadata = {"name": "models"}
    team.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim})
    value = secrets.token_hex(16)
    team.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"alice": value}})
    return value


@pytest.fixture(scope="module")
def service(team: Team, key: str) -> Document:
    """The service, ready; its status."""
    team.apply(
        service_document(
            name=NAME,
            model={"uri": uri("first")},
            adapters=[{"name": "docs", "uri": uri("docs")}],
            access={"apiKeySecretRef": {"name": "keys"}},
            limits={"maxOutputTokens": MOST_TOKENS},
            scaling={"minReplicas": 0, "maxReplicas": 1, "idleSeconds": IDLE_SECONDS},
            rollout={"canary": CANARY},
            compute={"perReplica": {"cpus": "200m", "memory": "3Gi"}},
        )
    )
    return team.wait_phase(KIND, NAME, "Ready", READY_SECONDS)


@pytest.fixture(scope="module")
def client(service: Document, key: str) -> openai.OpenAI:
    """The official client with a key."""
    return openai.OpenAI(base_url=f"{service['url']}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def promoted(team: Team, client: openai.OpenAI) -> SimpleNamespace:
    """Another version, taken over step by step while somebody asks."""
    with Asking(partial(ask, client), pause_seconds=0.1) as asking:
        status = rolled_out(team, "second", "Promoted")
        in_service(team, "second")
    return SimpleNamespace(rollout=status["rollout"], asking=asking)


@pytest.fixture(scope="module")
def rolled_back(team: Team, client: openai.OpenAI, promoted: SimpleNamespace) -> SimpleNamespace:
    """A version whose weights are cut off."""
    with Asking(partial(ask, client), pause_seconds=0.1) as asking:
        status = rolled_out(team, "broken", "RolledBack")
    return SimpleNamespace(status=status, asking=asking)


@pytest.fixture(scope="module")
def at_zero(team: Team, rolled_back: SimpleNamespace) -> Document:
    """The service once nobody has asked for a while, and its worker's pod has gone."""
    patch(team, "second")
    found = team.wait(
        KIND, NAME, lambda status: status.get("reason") == "ScaledToZero", ZERO_SECONDS, what="no replica is left"
    )
    wait_until(lambda: not workers(team), ZERO_SECONDS, "the end of the replica's pod")
    return found


@pytest.fixture(scope="module")
def woken(team: Team, client: openai.OpenAI, at_zero: Document) -> SimpleNamespace:
    """A request while there is no replica, and then another version."""
    began = time.monotonic()
    text = ask(client.with_options(timeout=300))
    seconds = time.monotonic() - began
    with Asking(partial(ask, client), pause_seconds=0.1) as asking:
        rolled_out(team, "first", "Promoted")
        in_service(team, "first")
    return SimpleNamespace(text=text, seconds=seconds, asking=asking)


def ask(client: openai.OpenAI, model: str = NAME) -> str:
    """A short answer, always the same by one model."""
    answer = client.completions.create(model=model, prompt="abc", max_tokens=8, temperature=0)
    return answer.choices[0].text


def patch(team: Team, model: str) -> None:
    """Let another version be served."""
    change = {"spec": {"model": {"uri": uri(model)}}}
    team.kubectl("patch", KIND, NAME, "--type=merge", "--patch", json.dumps(change))


def rolled_out(team: Team, model: str, phase: str) -> Document:
    """Let a version be served, unless it is asked for already; the status once its rollout has ended so."""
    patch(team, model)

    def has_ended(status: Document) -> bool:
        rollout: Document = status.get("rollout") or {}
        return rollout.get("phase") == phase and rollout["candidate"]["uri"] == uri(model)

    return team.wait(KIND, NAME, has_ended, ROLLOUT_SECONDS, what=f"{model} {phase}")


def in_service(team: Team, model: str) -> Document:
    """Wait until a version is in service; the status."""
    return team.wait(KIND, NAME, lambda status: status["model"]["uri"] == uri(model), 60, what=f"{model} in service")


def workers(team: Team) -> list[Document]:
    """Pods of replicas."""
    return team.pods(NAME, **{"ray.io/node-type": "worker"})


def test_a_request_without_a_key_is_refused(service: Document):
    stranger = openai.OpenAI(base_url=f"{service['url']}/v1", api_key="none", max_retries=0, timeout=60)
    with pytest.raises(openai.AuthenticationError):
        ask(stranger)


def test_the_model_and_its_adapter_answer_each_in_its_own_way(client: openai.OpenAI, service: Document):
    assert [model.id for model in client.models.list()] == [NAME, "docs"]
    assert ask(client) != ask(client, "docs")
    assert [adapter["name"] for adapter in service["adapters"]] == ["docs"]


def test_more_than_the_limit_is_refused(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match=f"at most {MOST_TOKENS}"):
        client.completions.create(model=NAME, prompt="abc", max_tokens=MOST_TOKENS + 1)


def test_another_version_is_promoted_step_by_step_without_a_failed_request(promoted: SimpleNamespace):
    assert promoted.asking.failures == []
    assert promoted.rollout["stable"]["uri"] == uri("first")
    # Both have the same weights.
    assert len(set(promoted.asking.answers)) == 1


def test_a_broken_version_is_taken_back_and_nobody_sees_it(rolled_back: SimpleNamespace):
    assert rolled_back.asking.failures == []
    assert rolled_back.status["rollout"]["reason"] == "CandidateNotLoaded"
    assert rolled_back.status["phase"] == "Ready"
    assert rolled_back.status["model"]["uri"] == uri("second")


def test_a_service_that_nobody_asks_gives_its_pod_back_and_keeps_its_head(at_zero: Document, team: Team):
    assert (at_zero["phase"], at_zero["readyReplicas"]) == ("Ready", 0)
    assert len(team.pods(NAME, **{"ray.io/node-type": "head"})) == 1


def test_the_next_request_waits_for_a_replica_and_is_answered(woken: SimpleNamespace, promoted: SimpleNamespace):
    print(f"\nthe first request after no replica: {woken.seconds:.0f} s")  # noqa: T201
    assert woken.text == promoted.asking.answers[0]


def test_the_replica_that_was_started_takes_versions_over_as_the_first_did(woken: SimpleNamespace, team: Team):
    assert woken.asking.failures == []
    assert team.status(KIND, NAME)["readyReplicas"] == 1


def test_its_end_leaves_nothing_behind(woken: SimpleNamespace, team: Team):
    team.kubectl("delete", KIND, NAME, "--wait=true")
    wait_until(lambda: not team.items("pods", f"plinth.dev/name={NAME}"), 180, "the end of all pods")
    assert team.items("rayservices") == []
