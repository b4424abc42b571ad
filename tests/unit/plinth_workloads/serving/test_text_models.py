"""Models that read: what they give a text, how much they can read, and which folders have one."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, RobertaConfig, RobertaModel

from plinth_api.adaptation import LoRA, Method
from plinth_workloads.errors import UserError
from plinth_workloads.models.adapters import attach
from plinth_workloads.models.load import load_model
from plinth_workloads.models.sentence_files import SentenceSettings, write_sentence_settings
from plinth_workloads.models.tasks import task_of
from plinth_workloads.serving.encoder import Labels
from plinth_workloads.serving.text_models import EmbeddingModel, LabelModel, load_text_model
from unit.plinth_workloads.serving.tiny_encoder import (
    CONTEXT_LENGTH,
    SIZE,
    by_hand,
    make_bert,
    make_classifier,
    make_label_model,
    make_text_model,
)
from unit.plinth_workloads.serving.tiny_model import make_tokenizer

IDS = torch.tensor([[65, 66, 67]])
MASK = torch.ones_like(IDS)
NAMES = {"id2label": {0: "no", 1: "yes", 2: "perhaps"}, "label2id": {"no": 0, "yes": 1, "perhaps": 2}}


@torch.no_grad()
def numbers(model):
    return model(IDS, MASK)[0]


def load(folder, task):
    return load_text_model(folder, "models:/tiny/1", task, device="cpu", tracking_uri="", cache_dir=folder)


def save(model, folder):
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("config", "kind", "expected"),
    [
        pytest.param(NAMES, "one", lambda logits: logits.softmax(0), id="one label"),
        pytest.param(
            {**NAMES, "problem_type": "multi_label_classification"}, "several", torch.sigmoid, id="several labels"
        ),
        pytest.param({"num_labels": 1}, "several", torch.sigmoid, id="a single number"),
        pytest.param({"num_labels": 1, "problem_type": "regression"}, "value", lambda logits: logits, id="a value"),
    ],
)
def test_a_classifier_s_numbers_are_what_it_was_trained_for(config, kind, expected):
    model = make_label_model(**config)
    with torch.no_grad():
        logits = make_classifier(**config)(input_ids=IDS).logits[0]
    assert model.labels.kind == kind
    torch.testing.assert_close(numbers(model), expected(logits))


def test_labels_are_the_model_s_own():
    assert make_label_model(**NAMES).labels == Labels(("no", "yes", "perhaps"), "one")


def test_a_text_is_read_behind_its_prompt_in_the_letters_that_the_model_knows():
    tokenizer = make_tokenizer()
    assert make_text_model(prompt="Q: ", lower_case=True).encode(["AB"]) == [tokenizer.encode("q: ab")]
    assert make_text_model().encode(["AB", "C"]) == [tokenizer.encode("AB"), tokenizer.encode("C")]


def test_several_poolings_make_a_longer_vector():
    model = make_text_model(poolings=("cls", "mean"))
    assert (model.width, len(numbers(model))) == (2 * SIZE, 2 * SIZE)


def test_the_context_is_the_least_of_what_positions_tokenizer_and_settings_hold():
    assert make_text_model().context_length == CONTEXT_LENGTH
    assert make_text_model(max_tokens=20).context_length == 20
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 10
    assert EmbeddingModel(make_bert(), tokenizer, SentenceSettings()).context_length == 10


def test_positions_that_begin_behind_padding_are_fewer():
    config = RobertaConfig(
        vocab_size=257,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=34,
        pad_token_id=1,
    )
    model = EmbeddingModel(RobertaModel(config), make_tokenizer(), SentenceSettings())
    assert model.context_length == 32
    row = torch.full((1, 32), 65)
    assert model(row, torch.ones_like(row)).shape == (1, 8)


def test_a_decoder_s_head_finds_the_end_of_each_text():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.4,
        num_labels=3,
    )
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = LabelModel(LlamaForSequenceClassification(config), tokenizer)
    padded = torch.tensor([[65, 66, 67], [65, model.pad_id, model.pad_id]])
    with torch.no_grad():
        together = model(padded, torch.tensor([[1, 1, 1], [1, 0, 0]]))
        torch.testing.assert_close(together[1:], model(padded[1:, :1], torch.ones(1, 1, dtype=torch.long)))


def test_a_folder_is_loaded_with_what_it_says_of_its_vectors(tmp_path):
    folder = save(make_bert(), tmp_path)
    write_sentence_settings(folder, SIZE)
    model = load(folder, "embed")
    assert (model.task, model.width, model.labels) == ("embed", SIZE, None)
    torch.testing.assert_close(numbers(model).numpy(), by_hand(IDS[0]), rtol=0, atol=1e-6)


def test_a_folder_of_a_classifier_has_its_labels(tmp_path):
    model = load(save(make_classifier(**NAMES), tmp_path), "classify")
    assert (model.task, model.labels.names) == ("classify", ("no", "yes", "perhaps"))
    torch.testing.assert_close(numbers(model), numbers(make_label_model(**NAMES)))


@pytest.mark.parametrize(
    ("task", "auto_class"), [("embed", "AutoModel"), ("classify", "AutoModelForSequenceClassification")]
)
def test_an_adapter_is_served_as_it_was_trained(tmp_path, task, auto_class):
    base = save(make_bert(), tmp_path / "base")
    implied = NAMES if task == "classify" else {}
    places = {"tracking_uri": "", "cache_dir": tmp_path}
    model = load_model(base, "the base", auto_class=auto_class, implied=implied, new_head=True, **places)
    tuned = attach(model, Method(lora=LoRA(r=2)), make_tokenizer(), f"file://{base}", 16, auto_class)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    folder = tmp_path / "adapter"
    tuned.save_pretrained(folder)
    tuned.config.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    served = load(folder, task_of(folder, "models:/tiny/1"))
    trained = (
        LabelModel(tuned, make_tokenizer())
        if task == "classify"
        else EmbeddingModel(tuned, make_tokenizer(), SentenceSettings())
    )
    torch.testing.assert_close(numbers(served), numbers(trained), rtol=0, atol=1e-5)
    with tuned.disable_adapter():
        assert (numbers(served) - numbers(trained)).abs().max() > 1e-3


def test_weights_that_no_file_has_are_not_made_up(tmp_path):
    folder = save(make_bert(), tmp_path)
    with pytest.raises(UserError, match=r"^models:/tiny/1 has no weights for classifier\.bias, which would be random$"):
        load(folder, "classify")


def test_several_values_are_refused(tmp_path):
    folder = save(make_classifier(num_labels=2, problem_type="regression"), tmp_path)
    with pytest.raises(UserError, match="gives a text 2 values; one is served"):
        load(folder, "classify")
