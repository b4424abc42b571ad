import copy
from typing import Any

import pytest

from plinth_api.errors import InvalidSpec
from plinth_operator.plan.strategic_merge import merge_pod_template

TEMPLATE: dict[str, Any] = {
    "metadata": {"labels": {"a": "1"}},
    "spec": {
        "restartPolicy": "Never",
        "tolerations": [{"key": "old"}],
        "containers": [
            {
                "name": "ray",
                "image": "one",
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    },
}


def merged_spec(**spec: Any) -> dict[str, Any]:
    merged: dict[str, Any] = merge_pod_template(TEMPLATE, {"spec": spec})["spec"]
    return merged


def test_an_empty_patch_changes_nothing():
    assert merge_pod_template(TEMPLATE, {}) == TEMPLATE


def test_the_template_itself_stays_as_it_is():
    before = copy.deepcopy(TEMPLATE)
    merge_pod_template(TEMPLATE, {"spec": {"containers": [{"name": "ray", "image": "two"}]}})
    assert before == TEMPLATE


def test_containers_merge_by_name_and_the_first_stays_first():
    containers = merged_spec(containers=[{"name": "log"}, {"name": "ray", "image": "two"}])["containers"]
    assert [container["name"] for container in containers] == ["ray", "log"]
    assert containers[0] == {**TEMPLATE["spec"]["containers"][0], "image": "two"}


def test_variables_merge_by_name():
    patch = [{"name": "ray", "env": [{"name": "C", "value": "3"}, {"name": "A", "value": "9"}]}]
    (container,) = merged_spec(containers=patch)["containers"]
    assert [(item["name"], item["value"]) for item in container["env"]] == [("A", "9"), ("B", "2"), ("C", "3")]


def test_mounts_merge_by_path_and_volumes_by_name():
    mounts = [{"name": "mine", "mountPath": "/tmp"}, {"name": "mine", "mountPath": "/more"}]
    spec = merged_spec(
        containers=[{"name": "ray", "volumeMounts": mounts}], volumes=[{"name": "mine", "hostPath": {"path": "/x"}}]
    )
    assert spec["containers"][0]["volumeMounts"] == mounts
    assert [volume["name"] for volume in spec["volumes"]] == ["tmp", "mine"]


def test_other_lists_are_replaced():
    assert merged_spec(tolerations=[{"key": "new"}])["tolerations"] == [{"key": "new"}]


def test_null_removes_a_field():
    assert "restartPolicy" not in merged_spec(restartPolicy=None)


def test_a_field_that_is_not_there_yet_is_added():
    assert merged_spec(hostIPC=True, initContainers=[{"name": "first"}])["initContainers"] == [{"name": "first"}]


def test_a_label_may_be_called_like_a_list():
    labels = {"env": "prod", "ports": "many"}
    merged = merge_pod_template(TEMPLATE, {"metadata": {"labels": labels}})
    assert merged["metadata"]["labels"] == {"a": "1", **labels}


@pytest.mark.parametrize(
    ("patch", "problem"),
    [
        ({"containers": []}, "spec.compute.podTemplate.containers: is no field of a pod template"),
        ({"spec": ["x"]}, "spec.compute.podTemplate.spec: must be an object"),
        ({"spec": {"containers": {}}}, "spec.compute.podTemplate.spec.containers: must be a list"),
        (
            {"spec": {"containers": [{"image": "x"}]}},
            "spec.compute.podTemplate.spec.containers[0]: must have name, by which the list is merged",
        ),
        ({"spec": {"volumes": ["x"]}}, "spec.compute.podTemplate.spec.volumes[0]: must have name"),
        (
            {"spec": {"containers": [{"$patch": "delete", "name": "ray"}]}},
            "spec.compute.podTemplate.spec.containers[0].$patch: directives are not supported; null removes a field",
        ),
    ],
)
def test_what_is_no_pod_template_is_refused(patch: dict[str, Any], problem: str):
    with pytest.raises(InvalidSpec) as caught:
        merge_pod_template(TEMPLATE, patch)
    assert str(caught.value).startswith(problem)
