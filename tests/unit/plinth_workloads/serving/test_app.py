"""What changes in place is no argument of the replicas, which would be made anew; one replica fills one pod.

A replica's engine is that of its task.
"""

import httpx
import pytest

from plinth_api.model_service import PromptExample, PromptTemplate
from plinth_api.run import ServeAdapter, ServeModel, ServeRun
from plinth_workloads.errors import UserError
from plinth_workloads.serving.app import Replica, _loaded_engine, build_app
from plinth_workloads.serving.idle_policy import ScaleToZero
from plinth_workloads.serving.room import Room
from serving_processes import free_port
from unit.plinth_workloads.serving.fake_engine import FakeEngine
from unit.plinth_workloads.serving.tiny_encoder import make_bert, make_classifier
from unit.plinth_workloads.serving.tiny_model import make_model, make_tokenizer

ARGS = {
    "version": 1,
    "name": "tiny",
    "engine": "torch",
    "task": "auto",
    "trackingUri": "http://mlflow",
    "gpus": 0,
    "cpus": 1.0,
    "workDir": "/work",
}


def deployment(**args):
    return build_app({**ARGS, **args})._bound_deployment


def test_a_model_and_a_scale_may_be_left_to_serve_s_config():
    bound = deployment()
    assert bound.num_replicas == 1
    assert bound.user_config["uri"] == ""


@pytest.mark.parametrize(
    "args",
    [
        pytest.param({"model": {"uri": "models:/m/2"}}, id="the model"),
        pytest.param({"model": {"uri": "", "limits": {"maxBodyBytes": 2048}}}, id="the limits"),
        pytest.param({"scaling": {"minReplicas": 1, "maxReplicas": 4, "targetOngoingRequests": 8}}, id="the scale"),
    ],
)
def test_replicas_are_made_of_the_same_whatever_changes_in_place(args):
    assert deployment(**args).init_args == deployment().init_args == (ARGS,)


def test_bounds_that_differ_scale_by_load():
    bound = deployment(scaling={"minReplicas": 1, "maxReplicas": 4, "targetOngoingRequests": 8})
    config = bound._deployment_config.autoscaling_config
    assert (config.min_replicas, config.max_replicas, config.target_ongoing_requests) == (1, 4, 8)


def test_a_service_that_scales_to_zero_has_a_policy_of_its_own():
    bound = deployment(scaling={"minReplicas": 0, "maxReplicas": 2, "targetOngoingRequests": 8, "idleSeconds": 60})
    policy = bound._deployment_config.autoscaling_config.policy
    assert policy.get_policy() is ScaleToZero
    assert policy.policy_kwargs == {"idle_seconds": 60}
    assert bound._deployment_config.graceful_shutdown_timeout_s == 600


@pytest.mark.anyio
async def test_a_replica_that_requests_wait_for_takes_them_once_its_model_is_loaded(monkeypatch):
    monkeypatch.setattr("plinth_workloads.serving.app._loaded_engine", lambda run, uri: FakeEngine())
    replica = Replica(ARGS)
    await replica.reconfigure({"uri": "models:/m/1", "holdsRequests": True})
    assert replica._served.uri == "models:/m/1"


def clocked_replica(monkeypatch):
    """A replica with room for every version, and what lets seconds pass and says how long it has been idle."""
    monkeypatch.setattr("plinth_workloads.serving.app._room_for", lambda run, load, uri: Room(0, 1))
    replica = Replica(ARGS)
    now = [0.0]
    replica.asgi._clock = lambda: now[0]

    async def idle(seconds):
        now[0] += seconds
        return (await replica.record_autoscaling_stats())["idle_seconds"]

    return replica, idle


@pytest.mark.anyio
async def test_a_replica_is_idle_from_when_its_model_was_loaded_and_never_while_one_cannot_be(monkeypatch):
    made = [FakeEngine(), UserError("ModelLoadFailed", "damaged")]

    def make(run, uri):
        engine = made.pop(0)
        if isinstance(engine, Exception):
            raise engine
        return engine

    monkeypatch.setattr("plinth_workloads.serving.app._loaded_engine", make)
    replica, idle = clocked_replica(monkeypatch)
    assert await idle(100) == 0
    await replica.reconfigure({"uri": "models:/m/1", "holdsRequests": True})
    assert [await idle(100), await idle(7)] == [0, 7]
    replica._served.set_target("models:/m/2")
    await replica._served.wait_loaded()
    assert [await idle(100), await idle(7)] == [0, 0]


@pytest.mark.anyio
async def test_a_replica_that_tries_a_version_is_not_idle_before_that_is_decided(monkeypatch):
    monkeypatch.setattr("plinth_workloads.serving.app._loaded_engine", lambda run, uri: FakeEngine())
    replica, idle = clocked_replica(monkeypatch)
    model = {"uri": "models:/m/1", "holdsRequests": True}
    await replica.reconfigure(model)
    assert [await idle(100), await idle(7)] == [0, 7]
    await replica.reconfigure({**model, "candidate": {"uri": "models:/m/2", "weight": 10}})
    assert [await idle(100), await idle(100)] == [0, 0]
    await replica._served.candidate.wait_loaded()
    assert await idle(100) == 0
    await replica.reconfigure(model)
    assert await idle(7) == 7


@pytest.mark.anyio
async def test_a_replica_tells_its_state_on_its_own_port_without_a_key(monkeypatch, tmp_path):
    monkeypatch.setattr("plinth_workloads.serving.app._loaded_engine", lambda run, uri: FakeEngine())
    (tmp_path / "key").write_text("secret")
    port = free_port()
    replica = Replica({**ARGS, "apiKeysDir": str(tmp_path), "probePort": port})
    await replica.reconfigure({"uri": "models:/m/1", "holdsRequests": True})
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(retries=20)) as http:
        told = await http.get(f"http://127.0.0.1:{port}/-/state")
        asked = await http.get(f"http://127.0.0.1:{port}/v1/models")
    assert (told.status_code, told.json()["replicaId"]) == (200, replica._served.replica_id)
    assert asked.status_code == 404


def test_bounds_that_agree_are_a_number():
    assert deployment(scaling={"minReplicas": 3, "maxReplicas": 3, "targetOngoingRequests": 8}).num_replicas == 3


@pytest.mark.parametrize(("cpus", "asked"), [(0.0, 1), (0.25, 1), (1.5, 2), (4.0, 4)])
def test_a_replica_takes_all_that_its_pod_offers(cpus, asked):
    assert deployment(cpus=cpus).ray_actor_options["num_cpus"] == asked


@pytest.mark.anyio
async def test_limits_are_taken_over_by_a_replica_that_answers():
    replica = Replica({**ARGS, "model": {"uri": "models:/m/1"}})
    replica._served.target_uri = "models:/m/1"
    transport = httpx.ASGITransport(app=replica.asgi)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        before = await http.post("/v1/completions", content=b" " * 2000)
        await replica.reconfigure({"uri": "models:/m/1", "limits": {"maxBodyBytes": 1024}})
        after = await http.post("/v1/completions", content=b" " * 2000)
    assert (before.status_code, after.status_code) == (400, 413)


@pytest.mark.anyio
async def test_a_replica_takes_all_that_a_service_may_say_of_its_model():
    prompt = PromptTemplate(system="short", examples=(PromptExample(user="a", assistant="b"),))
    wanted = ServeModel(
        uri="models:/m/1",
        prompt=prompt,
        adapters=(ServeAdapter(name="docs", uri="models:/docs/2"),),
        aliases={"docs": "champion"},
    )
    replica = Replica(ARGS)
    replica._served.target_uri = "models:/m/1"
    await replica.reconfigure(wanted.to_wire())
    assert replica._served.adapters.names == ("docs",)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=replica.asgi), base_url="http://test") as http:
        listed = (await http.get("/v1/models")).json()["data"]
    assert [card["id"] for card in listed] == [ARGS["name"], "docs", "docs@champion"]
    assert deployment(model=wanted.to_wire()).user_config == wanted.to_wire()


def saved(model, folder):
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return f"file://{folder}"


def engine_of(uri, task, **args):
    return _loaded_engine(ServeRun.model_validate({**ARGS, "task": task, **args}), uri)


@pytest.mark.parametrize(
    ("make", "wanted", "task"),
    [
        pytest.param(make_model, "auto", "generate", id="generates"),
        pytest.param(make_bert, "auto", "embed", id="embeds"),
        pytest.param(make_classifier, "auto", "classify", id="classifies"),
        pytest.param(make_classifier, "embed", "embed", id="as it is asked to"),
    ],
)
def test_an_engine_does_what_the_service_or_else_the_model_says(tmp_path, make, wanted, task):
    assert engine_of(saved(make(), tmp_path), wanted).task == task


@pytest.mark.parametrize(("wanted", "compiles"), [(True, True), (False, False), (None, False)])
def test_an_engine_compiles_where_the_service_says_so(tmp_path, wanted, compiles):
    assert engine_of(saved(make_model(), tmp_path), "generate", compile=wanted)._compile is compiles


def test_a_task_that_the_model_was_not_trained_for_is_refused(tmp_path):
    with pytest.raises(UserError, match="is a BertModel, which generates no text"):
        engine_of(saved(make_bert(), tmp_path), "generate")
