"""The operator under its own service account, with the rights that the chart gives and the real authorizer.

Every right must be used and no request refused: what is granted is compared with what the operator asked for.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from charts import installed, rendered
from cluster.control_plane import ControlPlane, wait_until
from cluster.faulty_proxy import FaultyProxy, Request, Rule
from cluster.kubeconfig import write_kubeconfig
from makers import fine_tune_document, pretrain_document, service_document
from namespaces import Namespace
from operators import OperatorProcess

pytestmark = pytest.mark.integration

Right = tuple[str, str, str]
"""API group, resource with its subresource, verb."""

RELEASE = "rights"
ACCOUNT = f"{RELEASE}-plinth"
DATA = {"train": [{"uri": "pvc://corpora/corpus.jsonl"}], "validation": {"fraction": 0.1}}
CHECKPOINT = {"uri": "pvc://checkpoints/tiny"}
KINDS = ("pretrainjobs", "finetunejobs", "modelservices")

NOT_REQUESTED = {
    # Admission asks for it, where a child blocks the deletion of its owner.
    *(("plinth.dev", f"{kind}/finalizers", "update") for kind in KINDS),
    # Jobs are looked up once more before a lost child is made again; the three kinds have one rule.
    ("plinth.dev", "modelservices", "get"),
}

PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<subresource>[^/]+))?)?"
)
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True)
class Installation:
    """One operator of the chart: where it is, and the one namespace that it serves, or all of them."""

    plane: ControlPlane
    home: str
    served: Namespace
    other: Namespace
    one_namespace: bool
    values: dict[str, object]
    folder: Path

    def allows(self, verb: str, resource: str, *, group: str = "", namespace: str = "", account: str = "") -> bool:
        """What the real authorizer says of a service account of this installation's home."""
        asked = {"namespace": namespace, "verb": verb, "group": group, "resource": resource.partition("/")[0]}
        asked["subresource"] = resource.partition("/")[2]
        user = f"system:serviceaccount:{self.home}:{account or ACCOUNT}"
        groups = ["system:authenticated", "system:serviceaccounts", f"system:serviceaccounts:{self.home}"]
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "groups": groups, "resourceAttributes": asked},
        }
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        allowed: bool = self.plane.request("POST", path, json.dumps(review).encode())["status"]["allowed"]
        return allowed


@pytest.fixture(scope="module", params=["whole cluster", "one namespace"])
def installation(request, control_plane, tmp_path_factory) -> Iterator[Installation]:
    """The chart, installed by Helm; its Deployment has no replica, as nothing here could run one."""
    folder = tmp_path_factory.mktemp("rights")
    home, served, other = (control_plane.create_namespace() for _ in range(3))
    one_namespace = request.param == "one namespace"
    values = {"replicas": 0, "namespace": served if one_namespace else ""}
    log = folder / "operator.log"
    log.touch()
    try:
        with installed(control_plane, home, values, release=RELEASE):
            yield Installation(
                control_plane,
                home,
                Namespace(control_plane, served, log),
                Namespace(control_plane, other, log),
                one_namespace,
                values,
                folder,
            )
    finally:
        for name in (home, served, other):
            control_plane.delete_namespace(name)


def granted(values: dict[str, object]) -> set[Right]:
    """What the chart's roles for the operator say."""
    roles = [
        document
        for document in rendered(values, release=RELEASE)
        if document["kind"] in ("ClusterRole", "Role")
        and document["metadata"]["name"] in (ACCOUNT, f"{ACCOUNT}-leader")
    ]
    return {
        (group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def used(log: list[Request]) -> set[Right]:
    """The rights that the requests needed; discovery is everybody's."""
    rights = set()
    for entry in log:
        path, _, query = entry.path.partition("?")
        found = PATH.fullmatch(path)
        if found is None:
            continue
        looks = "get" if found["name"] else "watch" if "watch=" in query else "list"
        subresource = f"/{found['subresource']}" if found["subresource"] else ""
        right = (found["group"] or "", found["resource"] + subresource, VERBS.get(entry.method, looks))
        rights.add(right)
        if entry.method == "PATCH" and entry.status == 201:
            rights.add((*right[:2], "create"))
    return rights


def is_watched(kind: str, log: list[Request]) -> bool:
    """Whether a watch of the kind has begun."""
    return any(f"/{kind}?" in entry.path and "watch=" in entry.path and entry.status == 200 for entry in list(log))


def namespaces_asked(log: list[Request]) -> set[str | None]:
    """The namespaces of the requests, None for those that span all."""
    matches = (PATH.fullmatch(entry.path.partition("?")[0]) for entry in log)
    return {found["namespace"] for found in matches if found is not None}


def refused(log: list[Request], names: set[str]) -> list[Request]:
    """Requests that were not allowed; what is told of namespaces that end is not about rights."""
    foreign = re.compile(r"/namespaces/(?!(?:{})/)".format("|".join(names)))
    return [entry for entry in log if entry.status in (401, 403) and not foreign.search(entry.path)]


def lives_through_everything(served: Namespace, document: dict[str, object]) -> None:
    """A job starts, is suspended, goes on, runs out of time, and its children are removed."""
    served.create(document)
    served.wait_status(document, phase="Starting")
    assert len(served.ray_jobs()) == 1
    served.merge(document, {"spec": {"suspend": True}})
    served.wait_status(document, phase="Suspended")
    served.merge(document, {"spec": {"suspend": False}})
    status = served.wait_status(document, phase="Starting")
    assert [attempt["number"] for attempt in status["attempts"]] == [1, 2]
    served.merge(document, {"spec": {"activeDeadlineSeconds": 1, "ttlSecondsAfterFinished": 1}})
    served.wait_status(document, phase="Failed", reason="DeadlineExceeded")
    wait_until(lambda: served.ray_jobs() == [], 60, "the end of the RayJobs")
    wait_until(lambda: len(served.items("", "configmaps")) == 1, 60, "the end of the ConfigMaps")
    assert {event["reason"] for event in served.items("", "events")} >= {"Suspended", "DeadlineExceeded"}
    served.delete(document)


def is_served_and_changed(served: Namespace) -> None:
    """A service gets its RayService, NetworkPolicy and Ingress; a change of its cluster replaces them."""
    document = service_document(
        model={"uri": "models:/tiny-chat/1"},
        access={"ingress": {"host": "tiny.example"}},
        rollout={"clusterChange": "Recreate"},
    )
    served.create(document)
    served.wait_status(document, phase="Starting")
    assert len(served.items("networking.k8s.io/v1", "ingresses")) == 1
    (before,) = served.items("ray.io/v1", "rayservices")
    served.merge(document, {"spec": {"access": {"ingress": None}, "compute": {"perReplica": {"cpus": 3}}}})
    wait_until(lambda: served.items("networking.k8s.io/v1", "ingresses") == [], 60, "the end of the Ingress")

    def is_another():
        found = served.items("ray.io/v1", "rayservices")
        return found and found[0]["metadata"]["uid"] != before["metadata"]["uid"]

    wait_until(is_another, 60, "another RayService")
    served.delete(document)
    wait_until(lambda: served.items("ray.io/v1", "rayservices") == [], 60, "the end of the RayService")


def test_everything_works_with_the_rights_of_the_chart_and_each_of_them_is_used(installation, tracking):
    plane, served, other = installation.plane, installation.served, installation.other
    with ExitStack() as stack:
        # The first of them is made while the operator is told that it was not, and hears nothing of it: it has to look.
        kinds = ("configmaps", "networkpolicies")
        rules = [Rule("fail_after", "POST", rf"/{kind}\?", status=500, times=1) for kind in kinds]
        rules += [Rule("withhold", path=rf"/{kind}\?", until=rf"GET .*/{kind}/[^?]+$") for kind in kinds]
        proxy = stack.enter_context(FaultyProxy(plane.url, plane.certificate, plane.certificate_key, rules))
        token = plane.service_account_token(installation.home, ACCOUNT)
        kubeconfig = write_kubeconfig(
            installation.folder / "kubeconfig", proxy.url, token, certificate=plane.certificate
        )
        settings = {"operator_namespace": installation.home}
        if installation.one_namespace:
            settings["namespace"] = served.name
        operator = OperatorProcess(installation.folder, kubeconfig, tracking.uri, **settings).start()
        stack.callback(operator.kill)
        # A list would tell of it: those before the watches are waited for, those after them fail.
        wait_until(lambda: all(is_watched(kind, proxy.log) for kind in kinds), 60, "the watches")
        rules[:0] = [Rule("respond", "GET", rf"/{kind}\?", watch=False, status=503) for kind in kinds]
        other.claim("corpora", "checkpoints")
        other.create(pretrain_document(data=DATA, checkpoint=CHECKPOINT))
        served.claim("corpora", "checkpoints")
        for make in (pretrain_document, fine_tune_document):
            lives_through_everything(served, make(data=DATA, checkpoint=CHECKPOINT))
        is_served_and_changed(served)
        if not installation.one_namespace:
            other.wait_status(pretrain_document(), phase="Starting")
        operator.kill()
        log = list(proxy.log)
    names = {installation.home, served.name, other.name}
    assert refused(log, names) == []
    assert granted(installation.values) - used(log) == NOT_REQUESTED
    assert used(log) <= granted(installation.values)
    if installation.one_namespace:
        assert "status" not in other.get(pretrain_document())
        assert other.ray_jobs() == []
        assert namespaces_asked(log) == {served.name, installation.home}


@pytest.mark.parametrize(
    ("verb", "resource", "group"),
    [
        *((verb, "secrets", "") for verb in ("get", "list", "watch", "create")),
        *((verb, "pods", "") for verb in ("create", "patch", "delete")),
        ("create", "pods/exec", ""),
        ("update", "configmaps", ""),
        ("update", "pretrainjobs", "plinth.dev"),
        ("patch", "modelservices", "plinth.dev"),
        ("delete", "finetunejobs", "plinth.dev"),
        ("patch", "rayjobs", "ray.io"),
        ("create", "rolebindings", "rbac.authorization.k8s.io"),
        ("create", "serviceaccounts/token", ""),
    ],
)
def test_its_account_may_do_nothing_else(installation, verb, resource, group):
    for namespace in (installation.home, installation.served.name, "kube-system"):
        assert not installation.allows(verb, resource, group=group, namespace=namespace)


def test_its_account_is_refused_a_secret(installation):
    plane, namespace = installation.plane, installation.served.name
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"key": "value"}}
    plane.apply(secret, namespace)
    kubeconfig = plane.kubeconfig_for_service_account(installation.home, ACCOUNT)
    command = [str(plane.kubectl()), "--kubeconfig", str(kubeconfig), "-n", namespace, "get", "secret", "keys"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert 'cannot get resource "secrets"' in answer.stderr


def test_children_that_block_their_owner_need_the_right_over_its_finalizers(installation, tmp_path):
    plane, served = installation.plane, installation.served
    document = pretrain_document(name="owner", data=DATA, checkpoint=CHECKPOINT)
    uid = served.create(document)["metadata"]["uid"]
    owner = {"apiVersion": "plinth.dev/v1alpha1", "kind": "PretrainJob", "name": "owner", "uid": uid}
    metadata = {"name": "child", "ownerReferences": [{**owner, "blockOwnerDeletion": True}]}
    child = tmp_path / "child.json"
    child.write_text(json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}))
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]}]
    poorer = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "poorer"}}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "poorer"}
    subjects = [{"kind": "ServiceAccount", "name": "default", "namespace": served.name}]
    plane.apply({**poorer, "kind": "Role", "rules": rules}, served.name)
    plane.apply({**poorer, "kind": "RoleBinding", "roleRef": reference, "subjects": subjects}, served.name)

    def create(namespace, account):
        kubeconfig = plane.kubeconfig_for_service_account(namespace, account)
        command = [plane.kubectl(), "--kubeconfig", kubeconfig, "-n", served.name, "create", "-f", child]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert "cannot set blockOwnerDeletion" in create(served.name, "default").stderr
    assert create(installation.home, ACCOUNT).returncode == 0
    served.delete(document)


def test_the_operator_of_one_namespace_has_no_rights_elsewhere(installation):
    elsewhere = installation.allows("list", "pretrainjobs", group="plinth.dev", namespace=installation.other.name)
    assert elsewhere is not installation.one_namespace
    assert installation.allows("list", "pretrainjobs", group="plinth.dev", namespace=installation.served.name)


@pytest.mark.parametrize("role", ["view", "edit", "admin"])
def test_who_may_view_or_edit_a_namespace_may_view_or_edit_our_kinds(installation, role):
    namespace = installation.served.name
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": role}}
    installation.plane.apply(account, installation.home)
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": role},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": role, "namespace": installation.home}],
    }
    installation.plane.apply(binding, namespace)

    def may(verb, resource):
        return installation.allows(verb, resource, group="plinth.dev", namespace=namespace, account=role)

    for kind in KINDS:
        # A controller gathers the rights of the cluster's own roles.
        wait_until(lambda kind=kind: may("list", kind), 60, f"the right of {role} over {kind}")
        for verb in ("create", "patch", "delete"):
            if role != "view":
                wait_until(lambda kind=kind, verb=verb: may(verb, kind), 60, f"{role} to {verb} {kind}")
            assert may(verb, kind) is (role != "view")
        assert not may("patch", f"{kind}/status")
