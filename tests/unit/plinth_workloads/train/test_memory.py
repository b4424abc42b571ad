"""The estimate of a worker's memory: a table of sizes, what torch really allocates, and what is refused."""

from dataclasses import replace

import pytest
import torch

from makers import make_fine_tune_job, make_pretrain_job, make_resolve_settings
from plinth_api.resolve import resolve_train_run
from plinth_workloads.train.export import export_model
from plinth_workloads.train.memory import GIB, ModelShape, Room, estimate, refusal, shape_of, tokens_of_a_row, told
from plinth_workloads.train.optim import build_optimizers
from plinth_workloads.train.parallel import autocast
from training import ALONE, make_train_run, make_tuning_run, open_alone

BILLION = ModelShape(
    parameters=10**9,
    trainable=10**9,
    matrices=8 * 10**8,
    multiplied=8 * 10**8,
    num_blocks=16,
    block=5 * 10**7,
    kept=16 * 50_000,
    products=16 * 25_000,
    norms=16 * 4096,
    hidden=2048,
    vocabulary=128_000,
    head_moves=True,
    heads=16 * 32,
)
ADAPTED = replace(BILLION, trainable=10**7, matrices=10**7, head_moves=False)


def run_with(**spec):
    return resolve_train_run(make_pretrain_job(**spec), make_resolve_settings(), {})


def of(shape, *, rows=1, tokens=1024, device="cpu", **spec):
    return estimate(shape, run_with(**spec), rows=rows, tokens=tokens, device=device)


def sharded(size):
    return {"compute": {"workers": size, "parallelism": {"shard": size}}}


def split_layers(size):
    return {"compute": {"workers": size, "parallelism": {"tensor": size}}}


@pytest.mark.parametrize(
    ("shape", "spec", "weights", "gradients", "optimizer", "saving"),
    [
        pytest.param(BILLION, {}, 4e9, 4e9, 8e9, 12e9, id="everything moves"),
        pytest.param(ADAPTED, {}, 4e9, 4e7, 8e7, 12e7, id="an adapter moves"),
        pytest.param(BILLION, sharded(4), 1e9, 1e9, 2e9, 3e9, id="a quarter"),
        pytest.param(BILLION, split_layers(4), 1e9, 1e9, 2e9, 3e9, id="a quarter of each layer"),
        pytest.param(
            BILLION, {"training": {"optimizer": {"name": "muon"}}}, 4e9, 4e9, 4.8e9, 8.8e9, id="one state a matrix"
        ),
        pytest.param(
            replace(BILLION, small=10**6),
            {"training": {"optimizer": {"name": "adamw8bit"}}},
            4e9,
            4e9,
            2.03125 * 999e6 + 8e6,
            4e9 + 2.03125 * 999e6 + 8e6,
            id="states of a byte",
        ),
        pytest.param(
            replace(ADAPTED, four_bit=8 * 10**8),
            {},
            round(0.8e9 + (0.5 + 1 / 64 + 1 / 4096) * 8e8),
            4e7,
            8e7,
            12e7,
            id="blocks in 4 bits",
        ),
        pytest.param(BILLION, {"training": {"precision": "bf16"}}, 4e9, 4e9, 8e9, 12e9, id="fp32 weights in bf16"),
    ],
)
def test_state_of_a_worker(shape, spec, weights, gradients, optimizer, saving):
    found = of(shape, **spec)
    assert (found.weights, found.gradients, found.optimizer, found.saving) == (weights, gradients, optimizer, saving)


@pytest.mark.parametrize(
    ("spec", "working"),
    [
        pytest.param({}, 0, id="computed as they are"),
        pytest.param({"training": {"precision": "bf16"}}, 2 * 8 * 10**8, id="cast for products"),
        pytest.param(sharded(4), 4 * (2 * 5 * 10**7 + 2 * 10**8) + 4 * 5 * 10**7, id="two blocks and the rest"),
        pytest.param(
            {**sharded(4), "training": {"precision": "bf16"}},
            2 * (2 * 5 * 10**7 + 2 * 10**8) + 4 * 5 * 10**7,
            id="gathered in bf16",
        ),
        pytest.param(
            split_layers(4), (4 * (2 * 5 * 10**7 + 2 * 10**8) + 4 * 5 * 10**7) / 4, id="two blocks, each in quarters"
        ),
    ],
)
def test_weights_in_another_form(spec, working):
    assert of(BILLION, **spec).working == working


NORMS = 2 * 4 * 16 * 4096
ALL = 16 * 50_000 * 4 + NORMS


@pytest.mark.parametrize(
    ("training", "kept"),
    [
        pytest.param({}, ALL, id="none"),
        pytest.param({"precision": "bf16"}, 16 * 50_000 * 2 + NORMS, id="none in bf16"),
        pytest.param({"activationCheckpointing": "full"}, 16 * 2048 * 4 + ALL // 16, id="full"),
        pytest.param(
            {"activationCheckpointing": "selective"},
            2 * 16 * 2048 * 4 + 16 * 25_000 * 4 + ALL // 16,
            id="selective",
        ),
    ],
)
def test_activations_of_a_token(training, kept):
    assert of(BILLION, rows=2, tokens=512, training=training).activations == 2 * 512 * kept


def test_split_layers_keep_what_enters_them_and_a_part_of_what_they_compute():
    entering, computed = 2 * 16 * 2048, 16 * 50_000 // 4
    found = of(BILLION, rows=2, tokens=512, **split_layers(4))
    assert found.activations == 2 * 512 * (4 * (entering + computed) + NORMS)
    assert found.loss == 2**24 * 8 + 4 * 2048 * (32_000 + 1024)


def test_activations_grow_with_rows_and_scores_with_the_square_of_their_length():
    one, two = (of(BILLION, rows=rows).activations for rows in (1, 2))
    assert two == 2 * one
    eager = replace(BILLION, eager=True)
    scores = [of(eager, tokens=tokens).activations - of(BILLION, tokens=tokens).activations for tokens in (512, 1024)]
    assert scores[1] == 4 * scores[0] == 3 * 4 * 1024**2 * 16 * 32


def test_dropped_scores_are_kept_on_a_cpu_only():
    drops = replace(BILLION, drops_scores=True)
    assert of(drops).activations > of(BILLION).activations
    assert of(drops, device="cuda").activations == of(BILLION, device="cuda").activations


def test_the_loss_holds_one_chunk_of_logits_whatever_the_rows():
    chunk = 2**24 * 8
    assert of(BILLION, rows=1).loss == chunk + 4 * 2048 * (128_000 + 1024)
    assert of(BILLION, rows=8).loss - of(BILLION, rows=1).loss == 4 * 2048 * 7 * 1024
    assert of(ADAPTED).loss == chunk + 4 * 2048 * 1024
    assert of(replace(BILLION, vocabulary=0)).loss == 0


@pytest.mark.parametrize(
    ("objective", "config", "tokens"),
    [
        pytest.param("causalLM", {}, 64, id="tokens"),
        pytest.param("contrastiveText", {}, 128, id="both texts of a pair"),
        pytest.param("maskedImage", {"image_size": 224, "patch_size": 16}, 197, id="patches"),
    ],
)
def test_positions_of_a_row(objective, config, tokens):
    run = run_with().model_copy(update={"objective": objective})
    assert tokens_of_a_row(run, type("Config", (), config)()) == tokens


def test_objectives_whose_models_leave_positions_out_are_refused_for_their_state_alone():
    run = run_with().model_copy(update={"objective": "maskedImage"})
    found = of(BILLION, rows=8)
    room = Room(found.state, "the GPU's memory that is free", None)
    assert refusal(found, run, room, rows=8, on_host=False) is None
    assert refusal(found, run, replace(room, size=found.state - 1), rows=8, on_host=False) is not None


def test_attention_in_windows_keeps_no_scores_of_whole_rows():
    from transformers import AutoConfig, AutoModelForMaskedImageModeling

    config = AutoConfig.for_model("swinv2", image_size=64, embed_dim=16, depths=[2, 2], num_heads=[1, 2], window_size=4)
    with torch.device("meta"):
        shape = shape_of(AutoModelForMaskedImageModeling.from_config(config))
    assert (shape.heads, shape.eager) == (0, True)
    assert shape.kept > 0


def kept_bytes(session, batch):
    """Bytes of all tensors that autograd keeps for the backward pass, weights not counted."""
    weights = {weight.untyped_storage().data_ptr() for weight in session.loss.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    session.loss.train()
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        autocast(session.run, ALONE),
    ):
        session.loss(**batch.inputs)
    return sum(size for size, _ in kept.values())


GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2}
LLAMA = {"hidden_size": None, "num_hidden_layers": None, "num_attention_heads": None, "intermediate_size": None}
GROUPED = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 1}


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({}, id="llama"),
        pytest.param({"model": {"config": {**GROUPED, "intermediate_size": 192}}}, id="grouped heads"),
        pytest.param({"training": {"precision": "bf16"}}, id="bf16"),
        pytest.param({"model": {"architecture": "gpt2", "config": {**LLAMA, **GPT2}}}, id="gpt2"),
    ],
)
def test_activations_are_within_a_third_of_what_torch_keeps(tmp_path, spec):
    session, _ = open_alone(make_train_run(tmp_path, **spec))
    (batch,) = session.loop._loader.next_step()
    found = estimate(shape_of(session.model), session.run, rows=8, tokens=64, device="cpu")
    assert found.activations == pytest.approx(kept_bytes(session, batch), rel=1 / 3)


def bytes_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "muon"])
def test_state_is_what_torch_allocates(tmp_path, optimizer):
    session, _ = open_alone(make_train_run(tmp_path, training={"optimizer": {"name": optimizer}}))
    check_state(session)


def test_state_of_an_adapter_is_what_torch_allocates(tmp_path):
    base, _ = open_alone(make_train_run(tmp_path / "base"))
    export_model(base.run, base.model, base.data.tokenizer, ALONE, tmp_path / "model")
    for method in ({"lora": {}}, {"lora": None, "qlora": {}}):
        session, _ = open_alone(make_tuning_run(tmp_path / "tune", tmp_path / "model", method=method))
        check_state(session)


def check_state(session):
    found = estimate(shape_of(session.model), session.run, rows=8, tokens=64, device="cpu")
    (batch,) = session.loop._loader.next_step()
    session.loss(**batch.inputs).backward()
    scales = [value for name, value in session.model.state_dict().items() if name.endswith("absmax")]
    assert found.weights == pytest.approx(bytes_of([*session.model.parameters(), *scales]), rel=1e-3)
    assert found.gradients == bytes_of(p.grad for p in session.model.parameters() if p.grad is not None)
    optimizers = build_optimizers(session.model, session.run.training)
    for one in optimizers:
        one.step()
    states = [value for one in optimizers for state in one.state_dict()["state"].values() for value in state.values()]
    allocated = bytes_of(value for value in states if isinstance(value, torch.Tensor) and value.ndim)
    assert found.optimizer == pytest.approx(allocated, rel=1e-4)


FITS = Room(64 * GIB, "the machine's memory", None)


def test_what_fits_is_not_refused():
    run = run_with()
    assert refusal(of(BILLION), run, FITS, rows=1, on_host=True) is None


def test_a_state_that_does_not_fit_is_refused_with_what_makes_it_smaller():
    run = run_with()
    found = of(BILLION, rows=8)
    room = Room(8 * GIB, "the container's memory", "spec.compute.perWorker.memory")
    assert refusal(found, run, room, rows=8, on_host=True) == (
        "a worker needs about 55.66 GiB, at least 45.02, but has 8.00 of the container's memory: in GiB with 8 rows of "
        f"64 tokens a pass, {found.described()}; raise spec.compute.parallelism.shard (now 1), take a smaller model, "
        "or raise spec.compute.perWorker.memory"
    )
    assert found.described().startswith("weights 3.73, gradients 3.73, optimizer 7.45, activations ")


def test_a_pass_that_does_not_fit_is_refused_with_what_makes_it_smaller():
    run = run_with()
    found = of(BILLION, rows=64)
    told_ = refusal(found, run, Room(40 * GIB, "the GPU's memory that is free", None), rows=64, on_host=False)
    assert told_ is not None
    assert told_.endswith(
        "; lower spec.training.microBatchSize (now 64) or set it to auto, set spec.training.activationCheckpointing "
        "to full (now none), lower spec.training.sequenceLength (now 64), raise spec.compute.parallelism.shard "
        "(now 1), or take a smaller model"
    )
    alone = refusal(found, run, Room(40 * GIB, "the GPU's memory that is free", None), rows=1, on_host=False)
    assert alone is not None
    assert "microBatchSize" not in alone


def test_full_tuning_is_told_of_lora():
    run = resolve_train_run(make_fine_tune_job(method={"full": {}}), make_resolve_settings(), {"models:/tiny/1": "1"})
    told_ = refusal(of(BILLION), run, Room(GIB, "the machine's memory", None), rows=1, on_host=True)
    assert told_ is not None
    assert told_.endswith("raise spec.compute.parallelism.shard (now 1), or use method lora")


def test_activations_count_by_what_is_certain_of_them():
    found = of(BILLION, rows=8)
    certain = found.state + round(found.activations * 2 / 3)
    room = Room(certain, "the GPU's memory that is free", None)
    assert refusal(found, run_with(), room, rows=8, on_host=False) is None
    tighter = replace(room, size=certain - 1)
    assert refusal(found, run_with(), tighter, rows=8, on_host=False) is not None


def test_copies_for_checkpoints_count_where_the_run_trains_on_the_host():
    found = of(BILLION)
    assert found.needed(on_host=True) - found.needed(on_host=False) == found.saving
    assert told(found, FITS, rows=1, on_host=True) == {
        "needed": found.needed(on_host=True),
        "room": 64 * GIB,
        "of": "the machine's memory",
        "rows": 1,
        "weights": 4 * 10**9,
        "gradients": 4 * 10**9,
        "optimizer": 8 * 10**9,
        "working": 0,
        "activations": found.activations,
        "loss": found.loss,
        "saving": 12 * 10**9,
    }
