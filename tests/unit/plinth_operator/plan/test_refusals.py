"""What the API server says of a child, in the words of the resource."""

from typing import Any

import pytest

from makers import Document, pretrain_document, service_document
from plinth_api.status import ServiceStatus
from plinth_operator.facts import Manifest
from plinth_operator.plan.refusals import Refusal, refusal_cause, steady_cause
from plinth_operator.status.reasons import Cause
from rendering import children_of, make

TEMPLATE: Document = {
    "spec": {
        "containers": [{"name": "ray", "env": [{"name": "A", "value": 1}], "resources": {"limits": {"cpu": "much"}}}],
        "hostNetwork": "yes",
        "nodeSelctor": {},
    }
}
WITH_TEMPLATE: Document = {"compute": {"podTemplate": TEMPLATE}}

INVALID = 'RayJob.ray.io "tiny-abcde-1" is invalid: [...]'
HEAD, WORKER = "headGroupSpec.template.spec", "workerGroupSpecs[0].template.spec"


def cause_of(refusal: Refusal, kind: str = "RayJob", **spec: Any) -> tuple[str, str] | None:
    is_service = kind == "RayService"
    document = (service_document if is_service else pretrain_document)(**spec)
    child: Manifest = children_of(make("ModelService" if is_service else "PretrainJob", **spec))[kind]
    found = refusal_cause(document, child, refusal)
    return (found.reason, found.message) if found else None


def position_of(name: str) -> int:
    container = children_of(make("PretrainJob", **WITH_TEMPLATE))["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]
    names = [variable["name"] for variable in container["template"]["spec"]["containers"][0]["env"]]
    return names.index(name)


def test_what_is_wrong_in_a_pod_template_is_told_once_with_the_path_that_the_user_wrote():
    said = [
        (
            f"spec.rayClusterSpec.{group}.hostNetwork",
            f'Invalid value: "string": x.{group} in body must be of type boolean: "string"',
        )
        for group in (WORKER, HEAD)
    ]
    assert cause_of(Refusal(422, "Invalid", INVALID, said), **WITH_TEMPLATE) == (
        "InvalidSpec",
        "spec.compute.podTemplate.spec.hostNetwork: must be of type boolean, not string",
    )


def test_a_list_that_is_merged_is_told_by_its_key_and_not_by_a_position_that_is_ours():
    path = f"spec.rayClusterSpec.{HEAD}.containers[0].env[{position_of('A')}].value"
    refusal = Refusal(422, "Invalid", INVALID, [(path, 'Invalid value: "integer": p in body must be of type string')])
    found = cause_of(refusal, **WITH_TEMPLATE)
    assert found is not None
    assert found[1].startswith('spec.compute.podTemplate.spec.containers[name="ray"].env[name="A"].value: must be')


def test_a_quantity_is_explained_without_its_pattern():
    path = f"spec.rayClusterSpec.{HEAD}.containers[0].resources.limits.cpu"
    words = "Invalid value: \"much\": p in body should match '^(\\+|-)?(([0-9]+(\\.[0-9]*)?)|x)$'"
    found = cause_of(Refusal(422, "Invalid", INVALID, [(path, words)]), **WITH_TEMPLATE)
    assert found is not None
    assert found[1].endswith('limits.cpu: must be a quantity: 8, "500m", 96Gi, not "much"')


@pytest.mark.parametrize(
    ("kind", "refusal"),
    [
        (
            "RayJob",
            Refusal(
                400, "BadRequest", f'strict decoding error: unknown field "spec.rayClusterSpec.{HEAD}.nodeSelctor"'
            ),
        ),
        (
            "RayService",
            Refusal(
                500,
                "500",
                "failed to create typed patch object (a/b; ray.io/v1, Kind=RayService): errors:\n"
                f"  .spec.rayClusterConfig.{WORKER}.nodeSelctor: field not declared in schema\n"
                f"  .spec.rayClusterConfig.{HEAD}.nodeSelctor: field not declared in schema",
            ),
        ),
    ],
)
def test_a_field_that_pods_do_not_have_is_named(kind: str, refusal: Refusal):
    expected = "spec.compute.podTemplate.spec.nodeSelctor: is no field of a pod template"
    assert cause_of(refusal, kind, **WITH_TEMPLATE) == ("InvalidSpec", expected)


def test_the_order_in_which_a_server_says_things_does_not_matter():
    lines = [f"  .spec.rayClusterConfig.{HEAD}.{field}: expected list, got &{{x}}" for field in ("b", "a", "c")]
    first = "failed to create typed patch object (a/b): errors:"
    told = {
        cause_of(Refusal(500, "500", "\n".join([first, *order])), "RayService", **spec)
        for order in (lines, lines[::-1])
        for spec in (WITH_TEMPLATE, {})
    }
    assert {reason for reason, _ in filter(None, told)} == {"InvalidSpec", "ObjectRefused"}
    assert len(told) == 2


def test_without_a_pod_template_it_is_not_the_users_fault():
    path = f"spec.rayClusterSpec.{HEAD}.hostNetwork"
    found = cause_of(Refusal(422, "Invalid", INVALID, [(path, "must be of type boolean")]))
    assert found == ("ObjectRefused", f"the API server refuses RayJob tiny-abcde-1: {path}: must be of type boolean")


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        pytest.param(Refusal(409, "NameConflict", "a Service named x exists"), "NameConflict", id="somebody else's"),
        pytest.param(Refusal(403, "Forbidden", "exceeded quota: q, used: 5"), "QuotaExceeded", id="a quota of objects"),
        pytest.param(Refusal(403, "Forbidden", "cannot create resource"), "ObjectRefused", id="a right is missing"),
        pytest.param(Refusal(400, "400", 'admission webhook "p" denied: no'), "ObjectRefused", id="a policy"),
        pytest.param(Refusal(500, "500", "failed calling webhook"), "ObjectRefused", id="a webhook that is down"),
        pytest.param(Refusal(500, "500", "etcdserver: request is too large"), "ObjectRefused", id="too large"),
    ],
)
def test_a_refusal_that_stays_is_told_in_the_servers_words(refusal: Refusal, reason: str):
    found = cause_of(refusal)
    assert found is not None
    assert found[0] == reason
    assert refusal.message in found[1]


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(409, "Conflict", "the object has been modified"),
        Refusal(429, "TooManyRequests", "later"),
        Refusal(500, "500", "something"),
        Refusal(503, "503", ""),
        Refusal(0, "Unreachable", "ConnectionError"),
        Refusal(404, "NotFound", "the server could not find the requested resource"),
        Refusal(403, "Forbidden", "unable to create new content in namespace a because it is being terminated"),
    ],
)
def test_what_another_try_may_mend_is_no_reason(refusal: Refusal):
    assert cause_of(refusal) is None


@pytest.mark.parametrize(
    ("reason", "generation", "said"),
    [
        pytest.param("InvalidSpec", 2, "told first", id="it stays as it was told while the spec is the same"),
        pytest.param("InvalidSpec", 3, "told now", id="a new spec is told anew"),
        pytest.param("QuotaExceeded", 2, "told now", id="what changes by itself is told as it is"),
    ],
)
def test_an_apply_that_tells_some_of_its_problems_each_time_changes_no_status(reason: str, generation: int, said: str):
    old = ServiceStatus(reason=reason, message="told first", observed_generation=2)
    assert steady_cause(Cause(reason, "told now"), old, generation) == Cause(reason, said)
