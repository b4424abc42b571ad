"""What changes in place is no argument of the replicas, which would be made anew; one replica fills one pod.

A replica's engine is that of its task.
"""

import httpx
import pytest

from plinth_api.model_service import PromptExample, PromptTemplate
from plinth_api.run import ServeAdapter, ServeModel, ServeRun
from plinth_workloads.errors import UserError
from plinth_workloads.serving.app import Replica, _loaded_engine, build_app
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
    wanted = ServeModel(uri="models:/m/1", prompt=prompt, adapters=(ServeAdapter(name="docs", uri="models:/docs/2"),))
    replica = Replica(ARGS)
    replica._served.target_uri = "models:/m/1"
    await replica.reconfigure(wanted.to_wire())
    assert replica._served.adapters.names == ("docs",)
    assert deployment(model=wanted.to_wire()).user_config == wanted.to_wire()


def saved(model, folder):
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return f"file://{folder}"


def engine_of(uri, task):
    return _loaded_engine(ServeRun.model_validate({**ARGS, "task": task}), uri)


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


def test_a_task_that_the_model_was_not_trained_for_is_refused(tmp_path):
    with pytest.raises(UserError, match="is a BertModel, which generates no text"):
        engine_of(saved(make_bert(), tmp_path), "generate")
