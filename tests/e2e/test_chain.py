"""The promise: Helm, data on a claim, `kubectl apply` of the demo's files, and a model that answers; then a better one.

One story in the order of its tests; each asks for the stage that it needs, so that a stage that fails is told once.
"""

import json
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest

from asking import Asking
from cluster.control_plane import wait_until
from cluster.images import image
from cluster.manifests import documents
from plinth_api.service_state import STATE_PATH, ServiceState
from plinth_release import Release
from teams import Document, Team
from timeline import Timeline

pytestmark = pytest.mark.timeout(1200)

DEMO = Path(__file__).parents[2] / "examples" / "demo"
TIMELINE = Path(__file__).parents[2] / ".plinth" / "e2e" / "timeline.json"
JOB_SECONDS = 420
SERVICE_SECONDS = 300


@pytest.fixture(scope="module")
def data(team: Team) -> Path:
    """The demo's data on its claim, put there by a Job as the README says."""
    folder = team.volume("corpora")
    for claim in ("checkpoints", "plinth"):
        team.volume(claim)
    team.kubectl("apply", "-f", str(DEMO / "data" / "claims.yaml"))
    team.kubectl("create", "configmap", "demo-prepare", f"--from-file={DEMO / 'prepare.py'}")
    (job,) = documents(DEMO / "data" / "job.yaml")
    # The only image of Python that is on this node.
    job["spec"]["template"]["spec"]["containers"][0]["image"] = image("workloads")
    team.apply(job)
    team.kubectl("wait", "--for=condition=Complete", "job/demo-data", "--timeout=180s")
    return folder


@pytest.fixture(scope="module")
def timeline(team: Team, data: Path) -> Iterator[Timeline]:
    """Everything that happens from here on; printed and kept at the end."""
    assert (data / "docstrings" / "train.jsonl").is_file()
    with Timeline(team) as timeline:
        yield timeline
    timeline.write(TIMELINE)
    print(f"\n{timeline.table()}\n(kept in {TIMELINE})")  # noqa: T201


@pytest.fixture(scope="module")
def applied(team: Team, timeline: Timeline) -> None:
    """The three files at once, as a GitOps pipeline applies them."""
    timeline.add("demo", "kubectl apply")
    team.kubectl("apply", "--server-side", "-f", str(DEMO / "cluster"))


@pytest.fixture(scope="module")
def trained(release: Release, team: Team, timeline: Timeline, applied: None) -> Document:
    """The base model's job, complete."""
    return finished(release, team, timeline, "pretrainjob", "pycode-base")


@pytest.fixture(scope="module")
def tuned(release: Release, team: Team, timeline: Timeline, trained: Document) -> Document:
    """The adapted model's job, complete."""
    return finished(release, team, timeline, "finetunejob", "pycode-docstrings")


@pytest.fixture(scope="module")
def served(team: Team, timeline: Timeline, tuned: Document) -> Document:
    """The service, ready."""
    return team.wait_phase("modelservice", "pycode", "Ready", SERVICE_SECONDS)


@pytest.fixture(scope="module")
def client(served: Document) -> openai.OpenAI:
    """The official client, pointed at the Service."""
    return openai.OpenAI(base_url=f"{served['url']}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def promoted(release: Release, team: Team, timeline: Timeline, client: openai.OpenAI) -> SimpleNamespace:
    """A better version trained and taken over while somebody asks all the time."""
    with Asking(partial(ask, client), pause_seconds=0.5) as asking:
        timeline.add("demo", "kubectl apply better/")
        team.kubectl("apply", "--server-side", "-f", str(DEMO / "better"))
        job = finished(release, team, timeline, "finetunejob", "pycode-docstrings-2")
        service = team.wait(
            "modelservice",
            "pycode",
            lambda status: status.get("phase") == "Ready" and status["model"]["version"] == "2",
            120,
            what="version 2 in use",
        )
        timeline.add("pycode", "version 2 in use")
        time.sleep(5)
    return SimpleNamespace(job=job, service=service, asking=asking)


def ask(client: openai.OpenAI) -> str:
    """A short answer."""
    question = "Write a docstring for this Python code.\n\ndef read_lines(path, encoding='utf-8'):"
    answer = client.chat.completions.create(
        model="pycode", messages=[{"role": "user", "content": question}], max_tokens=16, temperature=0
    )
    return answer.choices[0].message.content or ""


def finished(release: Release, team: Team, timeline: Timeline, kind: str, name: str) -> Document:
    """Wait for a job as a pipeline does; its status, with what its run recorded in the timeline."""
    try:
        team.wait_phase(kind, name, "Succeeded", JOB_SECONDS)
    finally:
        run_id = team.status(kind, name).get("tracking", {}).get("runId")
        if run_id:
            names = ("train/loss", "train/checkpoint_step")
            timeline.add_training(name, {metric: release.metric(run_id, metric) for metric in names})
            uid = team.get(kind, name)["metadata"]["uid"]
            for folder in team.volume_folder("checkpoints").glob(f"*/.work/{uid}"):
                timeline.add_progress(name, folder)
    # What Argo CD, Flux and every pipeline script wait for.
    team.kubectl("wait", "--for=condition=Complete", f"{kind}/{name}", "--timeout=10s")
    return team.status(kind, name)


def test_two_pods_train_and_the_model_is_registered(trained: Document, team: Team, timeline: Timeline):
    assert trained["evaluation"]["gate"] == "Passed"
    assert trained["model"]["version"] == "1"
    assert trained["progress"]["step"] == 240
    (attempt,) = trained["attempts"]
    assert attempt["outcome"] == "Succeeded"
    assert timeline.seconds("pycode-base 1", "worker pod running") < timeline.seconds("pycode-base", "first step")


def test_the_alias_starts_what_waited_for_it(tuned: Document, timeline: Timeline):
    waited = timeline.seconds("pycode-docstrings", "Pending ModelNotFound")
    assert waited < timeline.seconds("pycode-base", "Succeeded")
    assert timeline.seconds("pycode-docstrings 1", "head pod created") > timeline.seconds("pycode-base", "first step")
    assert tuned["evaluation"]["gate"] == "Passed"


def test_the_service_answers(client: openai.OpenAI, served: Document, timeline: Timeline):
    assert ask(client)
    timeline.add("pycode", "first answer")
    assert served["model"]["version"] == "1"


def test_the_chat_page_is_in_the_image(served: Document):
    with urllib.request.urlopen(f"{served['url']}/page/main.js", timeout=10) as answer:
        assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"


def test_a_better_version_is_taken_over_without_a_failed_request(promoted: SimpleNamespace):
    assert promoted.job["model"]["version"] == "2"
    assert promoted.job["evaluation"]["gate"] == "Passed"
    assert promoted.asking.failures == []
    assert len(promoted.asking.answers) > 10
    # From the replica itself, besides what the operator says of it.
    with urllib.request.urlopen(f"{promoted.service['url']}{STATE_PATH}", timeout=10) as answer:
        state = ServiceState.model_validate_json(answer.read())
    assert state.model_uri == promoted.job["model"]["uri"]
    assert state.errors == 0


def test_the_runs_are_in_mlflow_for_good(release: Release, promoted: SimpleNamespace, team: Team):
    for kind, name in (("pretrainjob", "pycode-base"), ("finetunejob", "pycode-docstrings-2")):
        run_id = team.status(kind, name)["tracking"]["runId"]
        run = release.mlflow(f"runs/get?run_id={run_id}")["run"]
        assert run["info"]["status"] == "FINISHED"
    registered = f"{team.name}.pycode-docstrings"
    version = release.mlflow(f"registered-models/alias?name={registered}&alias=champion")["model_version"]
    assert version["version"] == "2"


def test_an_edit_in_git_of_a_job_that_ran_is_refused(team: Team, promoted: SimpleNamespace):
    document = json.loads(team.kubectl("get", "pretrainjob", "pycode-base", "--output", "json"))
    edited = {key: document[key] for key in ("apiVersion", "kind")}
    edited |= {"metadata": {"name": "pycode-base"}, "spec": {**document["spec"]}}
    edited["spec"]["training"] = {**document["spec"]["training"], "steps": 480}
    told = team.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=json.dumps(edited), check=False)
    assert "spec.training" in told
    assert team.status("pretrainjob", "pycode-base")["phase"] == "Succeeded"


def test_everything_deleted_leaves_nothing_behind(release: Release, team: Team, promoted: SimpleNamespace):
    team.kubectl("delete", "--wait=true", "-f", str(DEMO / "cluster"), "-f", str(DEMO / "better"))
    kinds = ("rayjobs", "rayclusters", "rayservices", "configmaps", "networkpolicies", "services", "jobs.batch", "pods")

    def ours() -> list[str]:
        return [
            f"{kind}/{item['metadata']['name']}"
            for kind in kinds
            for item in team.items(kind)
            if "plinth.dev/uid" in item["metadata"].get("labels", {})
            or any(owner["kind"].startswith("Ray") for owner in item["metadata"].get("ownerReferences", ()))
        ]

    wait_until(lambda: not ours(), 180, "the end of every child")
    experiments = release.mlflow("experiments/search", {"max_results": 1000})["experiments"]
    ids = [found["experiment_id"] for found in experiments if found["name"].startswith(f"{team.name}.")]
    runs: list[Document] = release.mlflow("runs/search", {"experiment_ids": ids, "max_results": 100})["runs"]
    assert {run["info"]["status"] for run in runs} == {"FINISHED"}
