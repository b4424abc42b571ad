"""What pods may do and who may reach them, and that a secret stays where it belongs; on one job and its service."""

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.addons import KUBERAY_NAMESPACE
from cluster.control_plane import wait_until
from cluster.images import image
from makers import service_document
from network_policies import Peer, lets_in, selects
from plinth_release import NAMESPACE, Release
from small_job import CORPUS, KIND, SmallJob, add_storage, small_job
from teams import Document, Team

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

NAME = "guarded"
VISIBLE = "a-value-that-anybody-may-see"
RAY_PORTS = (6379, 8265, 10001)
POD_LOGS = Path("/var/log/pods")
KINDS = "configmaps,pods,services,events,jobs.batch,networkpolicies.networking.k8s.io"
OURS = "rayjobs,rayclusters,rayservices,pretrainjobs,finetunejobs,modelservices"
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}

ASK = """
import json, sys, urllib.error, urllib.request
address, token = sys.argv[1:]
headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
answers = {}
for path, body in (("/api/jobs/", None), ("/nodes?view=summary", None), ("/api/jobs/", b'{"entrypoint": "true"}')):
    request = urllib.request.Request(f"http://{address}:8265{path}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            answers[f"{request.get_method()} {path}"] = answer.status
    except urllib.error.HTTPError as error:
        answers[f"{request.get_method()} {path}"] = error.code
print(json.dumps(answers))
"""

FIND = """
import os, pathlib, sys
wanted = sys.stdin.buffer.read().split()
for path in pathlib.Path('/tmp').rglob('*'):
    try:
        content = path.read_bytes() if path.is_file() else b''
    except OSError:
        continue
    for value in wanted:
        if value in content:
            print(path)
"""


@dataclass
class Watched:
    """A job with secrets, as seen while it trained and at its end."""

    team: Team
    values: dict[str, str]
    """The secret values by what they are."""

    pods: list[Document]
    answers: dict[str, Document]
    """What Ray's dashboard said to another pod, by the token that this had."""

    files_of_pods: str
    """The files in /tmp of head and worker that have one of the values, Ray's logs among them."""

    run_id: str = ""
    records: dict[str, bytes] = field(default_factory=dict)
    """Everything that was written down, by where."""


@pytest.fixture(scope="module")
def planted(team: Team) -> dict[str, str]:
    """Values of two Secrets: one is named by a variable, one by a source of data."""
    values = {name: secrets.token_hex(16) for name in ("variable", "source")}
    for name, key in {"variable": "token", "source": "HUB_PASSWORD"}.items():
        metadata = {"name": f"planted-{name}"}
        team.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {key: values[name]}})
    return values


@pytest.fixture(scope="module")
def outsider(release: Release) -> Team:
    """Another team's namespace, with a pod that has nothing to do with the job."""
    other = release.team(f"other-{secrets.token_hex(2)}")
    other.apply(pod("outsider", RESTRICTED))
    other.kubectl("wait", "--for=condition=Ready", "pod/outsider", "--timeout=120s")
    return other


@pytest.fixture(scope="module")
def watched(release: Release, team: Team, outsider: Team, planted: dict[str, str]) -> Watched:
    """The job, from the start to the end."""
    job = SmallJob(team, add_storage(team), guarded_job())
    head = wait_until(lambda: ready_head(team), 300, "the head pod")
    token = secret_value(team, head["metadata"]["labels"]["ray.io/cluster"], "auth_token")
    values = {**planted, "Ray's token": token, "MLflow's password": mlflow_password(team)}
    answers = {
        name: json.loads(outsider.kubectl("exec", "outsider", "--", "python", "-c", ASK, address(head), given))
        for name, given in {"none": "", "another": secrets.token_hex(16), "its own": token}.items()
    }
    job.wait_training()
    pods = team.pods(NAME)
    found = "".join(files_with(team, one["metadata"]["name"], values) for one in pods if is_ray(one))
    seen = Watched(team, values, pods, answers, found, run_id=job.run_id())
    seen.records |= written_down(release, team, "while it trained")
    team.wait_phase(KIND, NAME, "Succeeded", 300)
    seen.records |= written_down(release, team, "at its end") | recorded_by_mlflow(release, seen.run_id)
    return seen


@pytest.fixture(scope="module")
def served(team: Team, watched: Watched) -> Iterator[list[Document]]:
    """The pods of a service of the job's model, as soon as there is a head and a worker."""
    team.apply(service_document(name="front", model={"uri": f"models:/{NAME}@champion"}))

    def both() -> list[Document]:
        found = team.items("pods", "plinth.dev/name=front")
        return found if {"head", "worker"} <= {role(one) for one in found} else []

    yield wait_until(both, 120, "the pods of the service")
    team.kubectl("delete", "modelservice", "front", "--wait=false")


# ---- what pods may do


def test_the_namespace_takes_restricted_pods_only(team: Team, watched: Watched):
    assert {role(one) for one in watched.pods} == {"head", "worker", "submitter"}
    privileged = json.dumps(pod("privileged", {"privileged": True}))
    refused = team.kubectl("create", "--dry-run=server", "-f", "-", text=privileged, check=False)
    assert 'violates PodSecurity "restricted' in refused


def test_pods_of_a_job_have_no_token_of_the_api_server(watched: Watched):
    assert {has_token(one) for one in watched.pods} == {False}


def test_only_the_head_of_a_service_has_a_token(served: list[Document]):
    assert {role(one): has_token(one) for one in served} == {"head": True, "worker": False}


def test_the_service_account_of_a_job_may_do_nothing(team: Team, watched: Watched):
    (account,) = {one["spec"]["serviceAccountName"] for one in watched.pods}
    assert [right for right in RIGHTS if may(team, account, *right)] == []


def test_the_head_of_a_service_may_do_what_kuberays_autoscaler_needs_and_no_more(team: Team, served: list[Document]):
    (account,) = {one["spec"]["serviceAccountName"] for one in served if role(one) == "head"}
    needed = {("list", "pods"), ("patch", "pods"), ("patch", "rayclusters")}
    assert {right for right in RIGHTS if may(team, account, *right)} == needed


# ---- who reaches them


@pytest.mark.parametrize(("token", "code"), [("none", 401), ("another", 403)])
def test_another_pod_gets_nothing_from_ray_without_its_token(watched: Watched, token: str, code: int):
    assert set(watched.answers[token].values()) == {code}


def test_the_token_is_what_it_takes(watched: Watched):
    assert watched.answers["its own"] == {"GET /api/jobs/": 200, "GET /nodes?view=summary": 200, "POST /api/jobs/": 200}


def test_pods_of_other_namespaces_are_kept_from_ray(team: Team, outsider: Team, watched: Watched):
    policy = policy_of(team, watched)
    stranger, own = Peer(outsider.name, {"plinth.dev/uid": "another"}), labels(watched.pods[0])
    assert [port for port in RAY_PORTS if lets_in(policy, stranger, port)] == []
    assert [port for port in RAY_PORTS if lets_in(policy, Peer(team.name, {}), port)] == []
    assert all(lets_in(policy, Peer(team.name, own), port) for port in RAY_PORTS)
    # KubeRay asks the dashboard for the state of the job.
    assert [port for port in RAY_PORTS if lets_in(policy, Peer(KUBERAY_NAMESPACE, {}), port)] == [8265]


def test_pods_that_are_not_of_a_job_are_kept_from_mlflow(release: Release, team: Team, watched: Watched):
    policy = json.loads(release.kubectl("get", "networkpolicy", "plinth-mlflow", "--output", "json"))
    server = json.loads(release.kubectl("get", "pods", "--output", "json", "-l", "app.kubernetes.io/component=mlflow"))
    assert all(selects(policy["spec"]["podSelector"], labels(one)) for one in server["items"])
    assert not lets_in(policy, Peer(team.name, {"app": "stranger"}), 5000)
    assert lets_in(policy, Peer(team.name, labels(watched.pods[0])), 5000)


# ---- where secrets are


def test_what_anybody_may_see_is_found_where_it_is_looked_for(watched: Watched):
    assert {"objects of the team at its end", "objects of the team while it trained"} <= set(places(watched, VISIBLE))
    assert any(watched.run_id.encode() in content for where, content in watched.records.items() if "MLflow" in where)
    assert any(b"plinth_operator" in content for where, content in watched.records.items() if "log" in where)


@pytest.mark.parametrize("name", ["variable", "source", "Ray's token", "MLflow's password"])
def test_no_secret_value_is_written_down_anywhere(watched: Watched, name: str):
    assert places(watched, watched.values[name]) == []


def test_no_secret_value_is_in_a_file_of_the_pods(watched: Watched):
    assert watched.files_of_pods == ""


RIGHTS = (
    *[(verb, kind) for verb in ("get", "list", "create", "patch") for kind in ("secrets", "configmaps")],
    *[
        ("list", "pods"),
        ("patch", "pods"),
        ("create", "pods"),
        ("create", "pods/exec"),
        ("patch", "rayclusters"),
        ("create", "rayjobs"),
    ],
    *[("get", "pretrainjobs"), ("patch", "pretrainjobs"), ("list", "nodes"), ("create", "rolebindings")],
)


def guarded_job() -> Document:
    """A job that names both Secrets, and a variable without one; a minute or two of training."""
    defaults = small_job(NAME)["spec"]
    variables = [
        {"name": "HUB_TOKEN", "secretKeyRef": {"name": "planted-variable", "key": "token"}},
        {"name": "PLAIN", "value": VISIBLE},
    ]
    return small_job(
        NAME,
        compute={**defaults["compute"], "env": variables},
        data={"train": [{"uri": CORPUS, "secretRef": {"name": "planted-source"}}], "validation": None},
        training={**defaults["training"], "steps": 500},
        output={"model": NAME, "alias": "champion"},
    )


def pod(name: str, security: Document) -> Document:
    """A pod that does nothing, of the only image with a Python."""
    container = {
        "name": "main",
        "image": image("workloads"),
        "command": ["python", "-c", "import time; time.sleep(3600)"],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
        "securityContext": security,
    }
    spec = {"containers": [container], "automountServiceAccountToken": False, "terminationGracePeriodSeconds": 1}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def role(one: Document) -> str:
    """head, worker or submitter."""
    return str(labels(one).get("ray.io/node-type", "submitter"))


def is_ray(one: Document) -> bool:
    """Whether Ray runs in the pod."""
    return role(one) != "submitter"


def labels(one: Document) -> dict[str, str]:
    """Of a pod."""
    found: dict[str, str] = one["metadata"]["labels"]
    return found


def address(one: Document) -> str:
    """Of a pod that runs."""
    return str(one["status"]["podIP"])


def ready_head(team: Team) -> Document | None:
    """The head pod, once it answers."""
    for one in team.pods(NAME, **{"ray.io/node-type": "head"}):
        if any(found["type"] == "Ready" and found["status"] == "True" for found in one["status"].get("conditions", ())):
            return one
    return None


def has_token(one: Document) -> bool:
    """Whether the API server's token is mounted into a pod."""
    sources = [source for volume in one["spec"]["volumes"] for source in volume.get("projected", {}).get("sources", ())]
    return any("serviceAccountToken" in source for source in sources)


def may(team: Team, account: str, verb: str, kind: str) -> bool:
    """Whether a ServiceAccount may do something in its namespace."""
    user = f"system:serviceaccount:{team.name}:{account}"
    return team.kubectl("auth", "can-i", verb, kind, f"--as={user}", check=False).strip().splitlines()[-1] == "yes"


def policy_of(team: Team, watched: Watched) -> Document:
    """The NetworkPolicy of the job, which is about every one of its pods."""
    (policy,) = team.items("networkpolicies", f"plinth.dev/name={NAME}")
    assert all(selects(policy["spec"]["podSelector"], labels(one)) for one in watched.pods)
    return policy


def secret_value(team: Team, name: str, key: str) -> str:
    """A value of a Secret, as an administrator reads it."""
    template = f'--output=go-template={{{{index .data "{key}" | base64decode}}}}'
    return team.kubectl("get", "secret", name, template)


def mlflow_password(team: Team) -> str:
    """With which the namespace's jobs reach MLflow."""
    return secret_value(team, "plinth-mlflow", "MLFLOW_TRACKING_PASSWORD")


def files_with(team: Team, name: str, values: dict[str, str]) -> str:
    """The files in a pod's /tmp that have one of the values."""
    command = ("exec", name, "--stdin", "--container=ray", "--", "python", "-c", FIND)
    return team.kubectl(*command, text=" ".join(values.values()))


def written_down(release: Release, team: Team, when: str) -> dict[str, bytes]:
    """Every object that is no Secret, and what every container has logged."""
    platform = ("get", KINDS, "--output", "json", "--namespace")
    records = {
        f"objects of the team {when}": team.kubectl("get", f"{KINDS},{OURS}", "--output", "json"),
        f"objects of the release {when}": release.kubectl(*platform, NAMESPACE),
        f"objects of KubeRay {when}": release.kubectl(*platform, KUBERAY_NAMESPACE),
    }
    logs = {f"log {path} {when}": path.read_bytes() for path in POD_LOGS.rglob("*.log")}
    return {where: text.encode() for where, text in records.items()} | logs


def recorded_by_mlflow(release: Release, run_id: str) -> dict[str, bytes]:
    """The run, its artifacts, and every file of the server, its database among them."""
    run: dict[str, Any] = release.mlflow(f"runs/get?run_id={run_id}")
    records = {"MLflow's run": json.dumps(run).encode()}
    volume = release.volume("plinth-mlflow")
    return records | {f"MLflow's {path}": path.read_bytes() for path in volume.rglob("*") if path.is_file()}


def places(watched: Watched, value: str) -> list[str]:
    """Where a value was written down."""
    return sorted(where for where, content in watched.records.items() if value.encode() in content)
