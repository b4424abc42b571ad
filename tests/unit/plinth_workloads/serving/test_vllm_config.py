"""What ray.serve.llm is told: accepted by Ray's own models, complete, and safe whatever the service says.

`ray.serve.llm` itself is imported only where vLLM is installed; its models are below it and need no vLLM.
"""

from typing import Any

import pytest
from pydantic import BaseModel
from ray.llm._internal.common.placement import PlacementGroupConfig
from ray.llm._internal.serve import constants as llm_constants
from ray.llm._internal.serve.core.configs.llm_config import LLMConfig
from ray.serve._private import constants as serve_constants

from plinth_api.engine_rules import VLLM_ENVIRONMENT
from plinth_api.parse import fields_by_wire_name
from plinth_api.run import ServeModel, ServeRun
from plinth_workloads.serving.vllm_config import DEPLOYMENT, RUN, FetchedModel, llm_config
from vllm_arguments import ENGINE_ARGUMENTS, FRONTEND_ARGUMENTS

RUN_OF_A_SERVICE = ServeRun.from_wire(
    {
        "name": "chat",
        "engine": "vllm",
        "task": "generate",
        "model": {"uri": "models:/chat/3"},
        "trackingUri": "http://mlflow",
        "gpus": 4,
        "tensorParallel": 4,
        "cpus": 7.5,
        "scaling": {"minReplicas": 1, "maxReplicas": 3, "targetOngoingRequests": 8},
        "workDir": "/work",
    }
)
FETCHED = FetchedModel(folder="/work/models/chat", task="generate")

HANDLED = {
    "version": "nothing: of the document",
    "name": "model_id",
    "engine": "which application is made",
    "task": "what the replica looks for in the model's files: runner",
    "model.uri": "model_source, once it is fetched",
    "model.adapters": "enable_lora, max_loras; loaded by the replica",
    "model.prompt": "user_config: the front",
    "model.limits": "user_config: the front",
    "model.aliases": "user_config: the front",
    "trackingUri": "the replica, which fetches",
    "gpus": "must be tensorParallel",
    "tensorParallel": "tensor_parallel_size, bundles",
    "cpus": "ray_actor_options",
    "compile": "enforce_eager, where it is false",
    "scaling": "num_replicas, autoscaling_config",
    "apiKeysDir": "the front",
    "modelCacheDir": "the replica, which fetches",
    "modelCacheBytes": "passed over: the volume's size is the bound",
    "model.holdsRequests": "refused before: spec.scaling.minReplicas 0",
    "probePort": "none is given: Ray and vLLM tell their own metrics",
    "model.candidate": "refused before: spec.rollout.canary",
    "workDir": "the replica, which fetches",
}
"""What becomes of each field of the serving document under vLLM."""


def config_of(fetched: FetchedModel | None = FETCHED, **changes: Any) -> dict[str, Any]:
    return llm_config(RUN_OF_A_SERVICE.model_copy(update=changes), fetched)


def engine_of(*args: Any, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = config_of(*args, **changes)["engine_kwargs"]
    return found


def model_with(num_adapters: int) -> ServeModel:
    adapters = [{"name": f"a{i}", "uri": f"models:/a{i}/1"} for i in range(num_adapters)]
    return ServeModel.from_wire({"uri": "models:/chat/3", "adapters": adapters})


def test_the_installed_ray_reads_every_variable_of_its_own_that_is_set_for_vllm():
    known = {*vars(serve_constants), *vars(llm_constants)}
    assert {name for name in VLLM_ENVIRONMENT if name.startswith("RAY_")} <= known


def test_of_every_field_of_the_document_somebody_has_decided_what_vllm_does_with_it():
    def names(model: type[BaseModel]) -> set[str]:
        return set(fields_by_wire_name(model))

    assert (names(ServeRun) - {"model"}) | {f"model.{name}" for name in names(ServeModel)} == set(HANDLED)


@pytest.mark.parametrize(
    "fetched",
    [
        None,
        FETCHED,
        FetchedModel(folder="/m", task="embed"),
        FetchedModel(folder="/m", task="generate", tool_parser="hermes", lora_rank=12),
    ],
)
@pytest.mark.parametrize("num_adapters", [0, 1, 40])
def test_rays_own_models_accept_what_they_are_told(fetched: FetchedModel | None, num_adapters: int):
    told = config_of(fetched, model=model_with(num_adapters))
    # The class is imported where it is named, and needs vLLM.
    config = LLMConfig.model_validate({**told, "server_cls": None})
    assert config.model_id == "chat"
    PlacementGroupConfig.model_validate(told["placement_group_config"])
    assert set(told["engine_kwargs"]) <= {*ENGINE_ARGUMENTS, *FRONTEND_ARGUMENTS}


def test_the_document_travels_with_the_configuration_and_comes_out_as_it_was():
    config = LLMConfig.model_validate({**config_of(None), "server_cls": None})
    assert ServeRun.from_wire(config.experimental_configs[RUN]) == RUN_OF_A_SERVICE


def test_a_replica_names_the_folder_that_it_has_fetched_and_others_the_model():
    assert config_of(None)["model_loading_config"] == {"model_id": "chat", "model_source": "models:/chat/3"}
    assert config_of()["model_loading_config"]["model_source"] == "/work/models/chat"


def test_only_safetensors_are_read_no_code_of_a_model_runs_and_no_picture_is_fetched():
    for kwargs in (engine_of(None), engine_of()):
        assert (kwargs["load_format"], kwargs["trust_remote_code"]) == ("safetensors", False)
        assert kwargs["language_model_only"] is True


def test_a_replica_is_on_one_node_and_takes_the_whole_of_its_pod():
    config = config_of()
    assert config["engine_kwargs"]["tensor_parallel_size"] == 4
    assert config["placement_group_config"] == {"bundle_per_worker": {"GPU": 1}, "strategy": "STRICT_PACK"}
    assert config["deployment_config"]["ray_actor_options"] == {"num_cpus": 8}


def test_scaling_and_what_changes_in_place_are_the_deployments():
    options = config_of()["deployment_config"]
    assert options["name"] == DEPLOYMENT
    assert options["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 8}
    assert ServeModel.from_wire(options["user_config"]) == RUN_OF_A_SERVICE.model


def test_vllm_compiles_unless_the_service_says_no():
    assert engine_of(compile=False)["enforce_eager"] is True
    assert not any("enforce_eager" in engine_of(compile=wanted) for wanted in (None, True))


def test_a_service_without_adapters_pays_nothing_for_them():
    assert not any("lora" in name for name in engine_of())


@pytest.mark.parametrize(("num_adapters", "at_once"), [(1, 1), (16, 16), (40, 16)])
def test_all_adapters_are_kept_and_some_are_on_the_gpu_at_once(num_adapters: int, at_once: int):
    kwargs = engine_of(model=model_with(num_adapters))
    assert (kwargs["enable_lora"], kwargs["max_cpu_loras"], kwargs["max_loras"]) == (True, num_adapters, at_once)


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (4, 8), (16, 16), (33, 64), (300, 320), (512, 512)])
def test_there_is_room_for_the_greatest_rank_of_the_adapters(rank: int, room: int):
    fetched = FetchedModel(folder="/m", task="generate", lora_rank=rank)
    assert engine_of(fetched, model=model_with(1))["max_lora_rank"] == room


def test_calls_of_functions_are_read_where_it_is_known_how_the_model_writes_them():
    fetched = FetchedModel(folder="/m", task="generate", tool_parser="hermes")
    assert engine_of(fetched)["tool_call_parser"] == "hermes"
    assert engine_of(fetched)["enable_auto_tool_choice"] is True
    assert "enable_auto_tool_choice" not in engine_of()


@pytest.mark.parametrize(
    ("pools_by_files", "pooler"),
    [(True, {"use_activation": True}), (False, {"use_activation": True, "seq_pooling_type": "MEAN"})],
)
def test_vectors_have_length_one_and_are_the_mean_where_the_files_do_not_say(
    pools_by_files: bool, pooler: dict[str, Any]
):
    kwargs = engine_of(FetchedModel(folder="/m", task="embed", pools_by_files=pools_by_files))
    assert (kwargs["runner"], kwargs["convert"], kwargs["pooler_config"]) == ("pooling", "embed", pooler)
