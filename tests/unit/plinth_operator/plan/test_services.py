"""What plan_service does about a service."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from makers import service_document
from plinth_api.model_service import PromptTemplate
from plinth_api.run import ServeModel
from plinth_api.service_state import CandidateState
from plinth_operator.constants import CLUSTER_HASH_ANNOTATION, HASH_ANNOTATION
from plinth_operator.facts import (
    ApplicationFacts,
    ClaimFacts,
    Manifest,
    ObjectFacts,
    Observed,
    RayServiceFacts,
    ReplicaState,
)
from plinth_operator.plan.plan import Plan
from plinth_operator.plan.services import plan_service
from rendering import SETTINGS, UID

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ALIAS, V3, V4 = "models:/team-a.tiny-chat@champion", "models:/team-a.tiny-chat/3", "models:/team-a.tiny-chat/4"
SEEN = Observed(versions={ALIAS: V3})
OTHER_IMAGE = {"compute": {"image": "other:2"}}


def plan(seen: Observed, status: dict[str, Any] | None = None, **spec: Any) -> Plan:
    document = service_document(namespace="team-a", uid=UID, **spec)
    document["metadata"]["generation"] = 1
    return plan_service({**document, "status": status or {}}, seen, settings=SETTINGS, now=NOW)


def facts(manifest: Manifest) -> dict[str, Any]:
    meta = manifest["metadata"]
    return {
        **{"kind": manifest["kind"], "namespace": "team-a", "name": meta["name"], "uid": meta["name"]},
        **{"owner_uid": UID, "resource_version": 1, "hash": meta["annotations"][HASH_ANNOTATION]},
        "spec": json.dumps(manifest["spec"]),
    }


def made(spec: Mapping[str, Any] = MappingProxyType({}), **fields: Any) -> Observed:
    """The service as it is once its children are made and answer with version 3."""
    policy, service = plan(replace(SEEN, claims=fields.get("claims", {})), **spec).children
    known = RayServiceFacts(
        **facts(service),
        cluster_hash=service["metadata"]["annotations"][CLUSTER_HASH_ANNOTATION],
        serve_config=service["spec"]["serveConfigV2"],
        ready=True,
        active=ApplicationFacts("c1", "RUNNING"),
    )
    replica = ReplicaState(V3, V3, "", NOW)
    return replace(
        SEEN, **{"children": (ObjectFacts(**facts(policy)),), "ray_services": (known,), "replica": replica, **fields}
    )


def kinds(found: Plan) -> list[str]:
    return [child["kind"] for child in found.children]


def test_an_alias_is_pinned_to_its_version():
    assert plan(replace(SEEN, versions={})).want_versions == (ALIAS,)
    found = plan(SEEN)
    assert kinds(found) == ["NetworkPolicy", "RayService"]
    assert V3 in found.children[-1]["spec"]["serveConfigV2"]


def test_what_is_as_wanted_is_left_alone():
    found = plan(made())
    assert (found.children, found.deletions) == ((), ())


def test_while_mlflow_is_away_the_version_in_use_stays():
    found = plan(made(versions={}, tracking_error="away"), plan(made()).status)
    assert (found.children, found.status["phase"]) == ((), "Ready")


@pytest.mark.parametrize(
    ("fields", "phase"),
    [
        pytest.param({}, "Ready", id="the version that is asked for answers"),
        pytest.param({"replica": ReplicaState(V4, V3, "", NOW)}, "Updating", id="another version answers"),
        pytest.param({"replica": None}, "Starting", id="nobody answers"),
        pytest.param({"replica": ReplicaState(V3, V3, "", NOW, has_no_keys=True)}, "Degraded", id="nobody has a key"),
        pytest.param({"versions": {ALIAS: V4}}, "Updating", id="the alias has moved"),
    ],
)
def test_it_is_ready_only_when_the_wanted_version_answers(fields: dict[str, Any], phase: str):
    assert plan(made(**fields)).status["phase"] == phase


def test_it_is_ready_only_when_its_prompt_is_in_service():
    prompt = {"system": "You answer in verse."}
    wanted = ServeModel(uri=V3, prompt=PromptTemplate(system="You answer in verse."))
    before = made()
    (changed,) = plan(before, prompt=prompt).children
    assert "You answer in verse." in changed["spec"]["serveConfigV2"]
    assert plan(before, prompt=prompt).status["phase"] == "Updating"
    replica = ReplicaState(V3, V3, "", NOW, prompt_hash=wanted.prompt_hash)
    told = plan(replace(before, replica=replica), prompt=prompt).status
    assert (told["phase"], told["model"]["promptHash"]) == ("Ready", wanted.prompt_hash)


CANARY = {"rollout": {"canary": {"steps": [10, 50], "intervalSeconds": 60}}}


def trying(**told: Any) -> Observed:
    """Version 4 is tried on a tenth of the requests beside version 3."""
    candidate = CandidateState(uri=V4, weight=10, **{"loaded": True, "seconds": 30.0, **told})
    return made(versions={ALIAS: V4}, replica=ReplicaState(V3, V3, "", NOW, replica_id="a", candidate=candidate))


def condition(status: dict[str, Any], kind: str) -> dict[str, Any] | None:
    return next((found for found in status["conditions"] if found["type"] == kind), None)


def user_config(found: Plan) -> dict[str, Any]:
    config = yaml.safe_load(found.children[0]["spec"]["serveConfigV2"])
    model: dict[str, Any] = config["applications"][0]["deployments"][0]["user_config"]
    return model


def test_a_new_version_is_tried_beside_the_old_one_where_the_spec_says_so():
    before = plan(made(), **CANARY).status
    assert (before["phase"], condition(before, "RolledBack")) == ("Ready", None)
    found = plan(made(versions={ALIAS: V4}), before, **CANARY)
    assert user_config(found) == {**user_config(found), "uri": V3, "candidate": {"uri": V4, "weight": 10}}
    assert found.requeue_seconds == 5.0
    after = plan(trying(), found.status, **CANARY).status
    assert (after["phase"], after["model"]["uri"], after["rollout"]["phase"]) == ("Updating", V3, "Progressing")
    rolled_back, ready = condition(after, "RolledBack"), condition(after, "Ready")
    assert rolled_back is not None
    assert ready is not None
    assert (rolled_back["status"], ready["status"]) == ("False", "True")


def test_what_lies_on_a_claim_is_told_as_its_user_wrote_it_and_mounted_for_replicas():
    first, second, root = "pvc://models/one", "pvc://models/two", "file:///mnt/plinth/volumes/models"
    claim = ClaimFacts("PersistentVolumeClaim", "team-a", "models", "c", "", 1, phase="Bound")
    spec = {"model": {"uri": first}}
    seen = made(spec, replica=ReplicaState(first, first, "", NOW), claims={"models": claim})
    before = plan(seen, **spec).status
    assert (before["phase"], before["model"]["uri"], before["model"]["name"]) == ("Ready", first, "models/one")
    found = plan(seen, before, model={"uri": second}, **CANARY)
    told = user_config(found)
    assert (told["uri"], told["candidate"]["uri"]) == (f"{root}/one", f"{root}/two")
    assert found.status["rollout"]["candidate"]["uri"] == second
    assert found.status["message"] == f"{second} is being loaded beside {first}"


def test_a_service_whose_new_version_was_taken_back_is_well_and_says_so():
    status = plan(trying(), plan(made()).status, **CANARY).status
    found = plan(trying(loaded=False, failed=True, load_error="it is damaged"), status, **CANARY)
    # Version 3 alone is what the replicas had been told before.
    assert (found.children, found.status["phase"]) == ((), "Ready")
    told = condition(found.status, "RolledBack")
    assert told is not None
    assert (told["status"], told["reason"]) == ("True", "CandidateNotLoaded")
    assert "it cannot be loaded: it is damaged" in found.status["message"]
    gone = plan(made(versions={ALIAS: V4}), found.status).status
    assert condition(gone, "RolledBack") is None


def test_while_mlflow_is_away_a_rollout_goes_on():
    status = plan(trying(), plan(made()).status, **CANARY).status
    away = plan(replace(trying(), versions={}, tracking_error="away"), status, **CANARY)
    assert user_config(away)["candidate"]["uri"] == V4


def test_a_spec_that_cannot_be_carried_out_leaves_the_rollout_as_it_is():
    status = plan(trying(), plan(made()).status, **CANARY).status
    refused = plan(trying(), status, engine="vllm", compute={"queueName": "q"}, **CANARY).status
    assert (refused["phase"], refused["rollout"]) == ("Degraded", status["rollout"])


def test_it_is_not_ready_while_requests_wait_for_a_version_to_take_the_place_of_another():
    held = "requests wait while 4 takes the place of 3"
    told = plan(made(versions={ALIAS: V4}, replica=ReplicaState("", V4, "", NOW, held=held)), plan(made()).status)
    ready = condition(told.status, "Ready")
    assert ready is not None
    assert (told.status["phase"], told.status["message"], ready["status"]) == ("Updating", held, "False")


DOCS = {"adapters": [{"name": "docs", "uri": "models:/docs@champion"}]}
DOCS_ALIAS, DOCS_2 = "models:/team-a.docs@champion", "models:/team-a.docs/2"


def test_it_is_ready_only_when_its_adapters_are_in_service():
    before = made(versions={ALIAS: V3, DOCS_ALIAS: DOCS_2})
    found = plan(before, **DOCS)
    assert DOCS_2 in found.children[0]["spec"]["serveConfigV2"]
    assert found.status["phase"] == "Updating"
    assert "adapters" not in found.status
    told = plan(replace(before, replica=ReplicaState(V3, V3, "", NOW, adapters=(("docs", DOCS_2),))), **DOCS).status
    assert (told["phase"], told["adapters"]) == ("Ready", [{"name": "docs", "uri": DOCS_2}])


def test_an_adapter_that_is_not_there_yet_holds_up_its_service_and_ends_none():
    versions = {ALIAS: V3, DOCS_ALIAS: ""}
    new = plan(replace(SEEN, versions=versions), **DOCS)
    assert (new.children, new.status["phase"], new.status["reason"]) == ((), "Pending", "ModelNotFound")
    running = plan(made(versions=versions), plan(made()).status, **DOCS)
    assert (running.children, running.deletions) == ((), ())
    assert (running.status["phase"], running.status["model"]["uri"]) == ("Degraded", V3)


def test_while_mlflow_is_away_the_adapters_in_use_stay():
    before = made(versions={ALIAS: V3, DOCS_ALIAS: DOCS_2})
    replica = ReplicaState(V3, V3, "", NOW, adapters=(("docs", DOCS_2),))
    status = plan(replace(before, replica=replica), **DOCS).status
    away = plan(replace(before, replica=replica, versions={}, tracking_error="away"), status, **DOCS)
    assert away.status["phase"] == "Ready"
    assert DOCS_2 in away.children[0]["spec"]["serveConfigV2"]


def test_a_surge_makes_one_change_at_a_time():
    before = made()
    (first,) = plan(replace(before, versions={ALIAS: V4}), **OTHER_IMAGE).children
    assert first["spec"]["serveConfigV2"] == before.ray_services[0].serve_config
    assert "other:2" in json.dumps(first["spec"])


def test_recreate_deletes_first():
    before = made()
    found = plan(before, rollout={"clusterChange": "Recreate"}, **OTHER_IMAGE)
    assert found.deletions == before.ray_services
    assert "RayService" not in kinds(found)


def test_an_edit_by_hand_is_undone():
    before = made()
    assert kinds(plan(replace(before, children=(replace(before.children[0], spec="{}"),)))) == ["NetworkPolicy"]
    assert kinds(plan(replace(before, ray_services=(replace(before.ray_services[0], spec="{}"),)))) == ["RayService"]
