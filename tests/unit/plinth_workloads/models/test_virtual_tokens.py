"""Virtual tokens act as words that stand before the text, in training, in evaluation and behind a cache."""

import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from plinth_api.adaptation import Method
from plinth_workloads.errors import UserError
from plinth_workloads.models.adapters import attach, with_adapter
from plinth_workloads.models.virtual_tokens import num_virtual_tokens, save_virtual_tokens, without_virtual_tokens

NUM = 6
WORDS = [7, 9, 11, 13]
IDS_BT = torch.arange(20, 60).view(2, 20)
ARCHITECTURES = {
    "llama": {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    "gpt2": {"n_embd": 32, "n_head": 4},
    "gemma3_text": {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 64,
    },
}


def make_model(architecture="llama", *, layers=2):
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, vocab_size=64, num_hidden_layers=layers, **ARCHITECTURES[architecture])
    config.initializer_range = 0.3
    return AutoModelForCausalLM.from_config(config).eval()


def attached(method, architecture="llama"):
    """The model with new virtual tokens, and the ids of the random words that they start from."""
    model = make_model(architecture)
    torch.manual_seed(1)
    words = torch.randint(64, (NUM,))
    torch.manual_seed(1)
    settings = {"numVirtualTokens": NUM, **method[1]}
    parsed = Method.model_validate({method[0]: settings})
    return attach(model, parsed, lambda text, **_: {"input_ids": list(WORDS)}, "models:/a/1", 32), words


def logits_of(model, ids_bt, **inputs):
    with torch.no_grad():
        return model(input_ids=ids_bt, use_cache=False, **inputs).logits


def behind(words, ids_bt):
    return torch.cat([words.expand(len(ids_bt), -1), ids_bt], dim=1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_new_ones_act_as_the_words_that_they_start_from(method, architecture):
    model, words = attached((method, {}), architecture)
    expected = logits_of(make_model(architecture), behind(words, IDS_BT))[:, NUM:]
    positions = torch.arange(20).expand(2, -1)
    torch.testing.assert_close(logits_of(model, IDS_BT), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits_of(model, IDS_BT, position_ids=positions), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits_of(make_model(architecture), IDS_BT), expected, atol=1e-2)


def test_the_words_of_a_text_are_repeated_to_their_number():
    model, _ = attached(("prompt", {"initText": "four words of text"}))
    words = torch.tensor([*WORDS, *WORDS[:2]])
    torch.testing.assert_close(logits_of(model, IDS_BT), logits_of(make_model(), behind(words, IDS_BT))[:, NUM:])


@pytest.mark.parametrize("method", ["prefix", "prompt", "promptEncoder"])
def test_padding_after_a_document_changes_nothing(method):
    model, _ = attached((method, {}))
    padded = torch.cat([IDS_BT, torch.zeros(2, 5, dtype=torch.long)], dim=1)
    positions = torch.cat([torch.arange(20), torch.arange(5)]).expand(2, -1)
    torch.testing.assert_close(
        logits_of(model, padded, position_ids=positions)[:, :20], logits_of(model, IDS_BT), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("method", ["prefix", "prompt", "promptEncoder"])
def test_the_gradient_reaches_every_weight_of_them_and_no_other(method):
    model, _ = attached((method, {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train()(input_ids=IDS_BT, labels=IDS_BT, use_cache=False).loss.backward()
    for name, value in model.named_parameters():
        moved = value.grad is not None and bool(value.grad.abs().sum() > 0)
        assert moved == name.startswith("virtual_tokens."), name


@pytest.mark.parametrize("method", ["prefix", "prompt", "promptEncoder"])
def test_without_them_the_model_is_its_base(method):
    model, _ = attached((method, {}))
    base = logits_of(make_model(), IDS_BT)
    with without_virtual_tokens(model):
        assert torch.equal(logits_of(model, IDS_BT), base)
    assert not torch.allclose(logits_of(model, IDS_BT), base, atol=1e-3)
    assert (num_virtual_tokens(model), num_virtual_tokens(make_model())) == (NUM, 0)


@pytest.mark.parametrize("method", ["prefix", "prompt", "promptEncoder"])
def test_those_of_another_model_are_refused(tmp_path, method):
    model, _ = attached((method, {}))
    save_virtual_tokens(model, model.state_dict(), tmp_path / "adapter")
    other = make_model(layers=3) if method == "prefix" else make_model("gpt2")
    if method != "prefix":
        other.resize_token_embeddings(64)
        other.set_input_embeddings(torch.nn.Embedding(64, 48))
    with pytest.raises(UserError) as error:
        with_adapter(other, tmp_path / "adapter")
    assert error.value.reason == "ModelLoadFailed"
    shapes = "[6, 128], the model needs [6, 192]" if method == "prefix" else "[6, 32], the model needs [6, 48]"
    assert error.value.message.endswith(f"the adapter does not fit the model: it has virtual tokens of shape {shapes}")
