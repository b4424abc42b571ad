"""Which engine serves, and what is refused with each: a combination that cannot be had is a sentence, never ignored."""

import pytest

from makers import make_model_service, make_resolve_settings
from plinth_api.engine_rules import engine_of
from plinth_api.errors import InvalidSpec
from plinth_api.resolve import resolve_serve_run

GPU = {"perReplica": {"gpus": 1}}


def service(**changes):
    return make_model_service(**{"model": {"uri": "models:/tiny/1"}, **changes})


def vllm(**changes):
    return service(**{"engine": "vllm", "compute": GPU, **changes})


def refused(asked, **settings):
    with pytest.raises(InvalidSpec) as refusal:
        resolve_serve_run(asked, make_resolve_settings(**{"has_vllm": True, **settings}), {})
    return [str(problem) for problem in refusal.value.problems]


@pytest.mark.parametrize("task", ["generate", "embed"])
def test_a_service_on_gpus_whose_task_is_known_is_given_vllm_where_there_is_an_image(task):
    assert engine_of(service(task=task, compute=GPU), has_vllm=True) == "vllm"
    assert engine_of(service(task=task, compute=GPU), has_vllm=False) == "torch"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"task": "generate"}, id="no GPU"),
        pytest.param({"compute": GPU}, id="a task that the model's files tell"),
        pytest.param({"task": "classify", "compute": GPU}, id="a task that vLLM does not do"),
        pytest.param({"task": "generate", "compute": {**GPU, "image": "mine:1"}}, id="an image of the user's own"),
        pytest.param({"task": "generate", "compute": {"perReplica": {"gpus": 2}}}, id="GPUs that hold two models"),
        pytest.param({"task": "generate", "compute": GPU, "rollout": {"canary": {}}}, id="a canary"),
        pytest.param({"task": "generate", "compute": GPU, "scaling": {"minReplicas": 0}}, id="scaling to zero"),
        pytest.param({"task": "generate", "compute": GPU, "engine": "torch"}, id="torch asked for"),
    ],
)
def test_auto_stays_with_torch_where_vllm_could_not_do_what_is_asked(changes):
    assert engine_of(service(**changes), has_vllm=True) == "torch"


def test_vllm_is_told_over_how_many_gpus_a_model_is_split():
    asked = vllm(compute={"perReplica": {"gpus": 4}, "tensorParallel": 4})
    run = resolve_serve_run(asked, make_resolve_settings(has_vllm=True), {})
    assert (run.engine, run.gpus, run.tensor_parallel) == ("vllm", 4, 4)


def test_an_image_of_the_users_own_may_have_vllm_where_the_platform_has_none():
    asked = vllm(compute={**GPU, "image": "mine:1"})
    assert resolve_serve_run(asked, make_resolve_settings(), {}).engine == "vllm"


def test_vllm_without_an_image_is_refused_with_the_three_ways_out():
    (problem,) = refused(vllm(), has_vllm=False)
    assert problem == (
        "spec.engine: not supported yet: spec.engine = vllm where nobody has set up an image with vLLM; leave it out, "
        "or name such an image in spec.compute.image, or have the chart's vllmImage set"
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"compute": {}}, "spec.compute.perReplica.gpus: engine vllm needs GPUs; set it, or use engine torch"),
        (
            {"compute": {"perReplica": {"gpus": 4}}},
            "spec.compute.tensorParallel: 1 does not fit the 4 GPUs of spec.compute.perReplica, which hold one model "
            "with engine vllm; set it to 4",
        ),
        (
            {"task": "classify"},
            "spec.task: not supported yet: spec.task = classify with engine vllm; use engine torch",
        ),
        (
            {"rollout": {"canary": {}}},
            "spec.rollout.canary: not supported yet: spec.rollout.canary with engine vllm, where a version has "
            "replicas of its own; leave it out, or use engine torch",
        ),
        (
            {"scaling": {"minReplicas": 0}},
            "spec.scaling.minReplicas: not supported yet: spec.scaling.minReplicas = 0 with engine vllm; set it to 1, "
            "or use engine torch",
        ),
    ],
)
def test_what_vllm_does_not_do_is_refused_with_the_way_out(changes, problem):
    assert problem in refused(vllm(**changes))


def test_the_torch_engine_splits_no_model():
    (problem,) = refused(service(compute={"perReplica": {"gpus": 2}, "tensorParallel": 2}))
    assert problem == (
        "spec.compute.tensorParallel: not supported yet: spec.compute.tensorParallel = 2 with engine torch; use engine "
        "vllm, or leave it out"
    )


@pytest.mark.parametrize("task", ["embed", "classify"])
def test_the_torch_engine_compiles_models_that_make_text(task):
    (problem,) = refused(service(task=task, compile=True))
    what = f"spec.compile: not supported yet: spec.compile with spec.task = {task} and engine torch"
    assert problem == f"{what}; leave it out"
    assert resolve_serve_run(service(task=task, compile=False), make_resolve_settings(), {}).compile is False
