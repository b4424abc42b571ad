"""Which layers an adapter goes to, and what is said of an architecture that has none for it."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from plinth_api.adaptation import Method
from plinth_workloads.errors import UserError
from plinth_workloads.models.adapters import adapter_base_uri, attach, load_adapter, merged, with_adapter

SIZES = {
    "llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "olmo2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "phi3": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "lfm2": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "layer_types": ["conv", "full_attention"],
    },
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}
LLAMA_LAYERS = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
IDS_BT = torch.arange(5, 21)[None]


def make_model(architecture):
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(architecture, vocab_size=64, **special, **SIZES[architecture])
    return AutoModelForCausalLM.from_config(config).eval()


def attached(architecture, method, *, sequence_length=32):
    parsed = Method.model_validate({name: dict(settings) for name, settings in method.items()})
    return attach(make_model(architecture), parsed, lambda text, **_: {"input_ids": []}, "models:/a/1", sequence_length)


@pytest.mark.parametrize(
    ("architecture", "method", "message"),
    [
        pytest.param(
            "llama",
            {"lora": {"targetModules": "q_proj, quary"}},
            f"spec.method.lora.targetModules: llama has no layer quary; there are {LLAMA_LAYERS}",
            id="lora",
        ),
        pytest.param(
            "gpt2",
            {"dora": {"targetModules": "q_proj,v_proj"}},
            "spec.method.dora.targetModules: gpt2 has no layer q_proj, v_proj; there are c_attn, c_fc, c_proj",
            id="dora",
        ),
        pytest.param(
            "llama",
            {"lora": {"targetModules": "mlp"}},
            f"spec.method.lora.targetModules: llama has no layer mlp; there are {LLAMA_LAYERS}",
            id="a module that is no layer",
        ),
        pytest.param(
            "phi3",
            {"ia3": {}},
            "spec.method.ia3: has no targets in phi3: it needs layers k_proj, v_proj, down_proj, there are down_proj, "
            "gate_up_proj, o_proj, qkv_proj; use lora, whose targetModules may be any of these",
            id="ia3",
        ),
        pytest.param(
            "lfm2",
            {"prefix": {"numVirtualTokens": 4}},
            "spec.method.prefix: lfm2 does not keep keys and values of one shape in every layer; use prompt, or lora",
            id="prefix",
        ),
        pytest.param(
            "mamba",
            {"prompt": {"numVirtualTokens": 4}},
            "spec.method.prompt: virtual tokens cannot be put before mamba; use lora, or full",
            id="prompt",
        ),
        pytest.param(
            "llama",
            {"prompt": {"initText": ""}},
            "spec.method.prompt.initText: has no tokens; give it words, or leave it out",
            id="a prompt of no words",
        ),
        pytest.param(
            "gpt2",
            {"promptEncoder": {"numVirtualTokens": 40}},
            "spec.method.promptEncoder.numVirtualTokens: 40 virtual tokens and rows of 32 tokens do not fit the "
            "model's 64 positions; lower one of them",
            id="more than the positions",
        ),
    ],
)
def test_an_architecture_without_a_place_is_refused(architecture, method, message):
    with pytest.raises(UserError) as error:
        attached(architecture, method)
    assert (error.value.reason, error.value.message) == ("InvalidSpec", message)


@pytest.mark.parametrize("architecture", ["llama", "olmo2"])
def test_ia3_scales_keys_values_and_what_enters_the_last_layer_of_the_mlp(architecture):
    model = attached(architecture, {"ia3": {}})
    trainable = {name.split(".ia3_l")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert {name.rpartition(".")[2] for name in trainable} == {"k_proj", "v_proj", "down_proj"}
    assert len(trainable) == 6
    feedforward = {name for name, module in model.named_modules() if getattr(module, "is_feedforward", False)}
    assert {name.rpartition(".")[2] for name in feedforward} == {"down_proj"}


def test_named_layers_alone_get_lora():
    model = attached("llama", {"lora": {"r": 2, "targetModules": "layers.1.self_attn.q_proj, up_proj"}})
    trainable = {name.split(".lora_")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert {name.removeprefix("base_model.model.model.") for name in trainable} == {
        "layers.1.self_attn.q_proj",
        "layers.0.mlp.up_proj",
        "layers.1.mlp.up_proj",
    }


@pytest.mark.parametrize("method", [{"lora": {"r": 2}}, {"dora": {"r": 2}}, {"ia3": {}}])
def test_transposed_layers_are_adapted_saved_and_merged_too(tmp_path, method):
    model = attached("gpt2", method)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.1 * torch.randn_like(value))
        expected = model(input_ids=IDS_BT).logits
        plain = make_model("gpt2")(input_ids=IDS_BT).logits
        model.save_pretrained(tmp_path)
        again = merged(load_adapter(make_model("gpt2"), tmp_path))(input_ids=IDS_BT).logits
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain, expected, atol=1e-3)


def test_an_adapter_without_safetensors_is_refused(tmp_path):
    attached("llama", {"lora": {"r": 2}}).save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors; other formats are not loaded"):
        with_adapter(make_model("llama"), tmp_path)


@pytest.mark.parametrize("cut", [4, 100, -1], ids=["its length", "its header", "its last byte"])
def test_an_adapter_that_is_cut_off_is_refused_with_its_file(tmp_path, cut):
    attached("llama", {"lora": {"r": 2}}).save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"adapter_model\.safetensors \([\d,]+ bytes\) is damaged: .*; copy it anew"):
        with_adapter(make_model("llama"), tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_an_adapter_that_names_no_base_is_refused(tmp_path, text):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=r"adapter_config\.json does not name the base model"):
        adapter_base_uri(tmp_path)
