import pytest
from transformers import AutoTokenizer

from plinth_workloads.data.formats import Example
from plinth_workloads.data.tokenize import tokenize_examples
from plinth_workloads.errors import UserError
from plinth_workloads.models.tokenizers import load_tokenizer, train_tokenizer

CHAT = [
    {"role": "user", "content": "say alpha"},
    {"role": "assistant", "content": "alpha"},
    {"role": "user", "content": "again"},
    {"role": "assistant", "content": "alpha alpha"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "t"
    train_tokenizer(["alpha beta say again " * 20, "héllo wörld ünïcode"], 320, folder)
    return load_tokenizer(folder, "t")


def tokenized(tokenizer, example, *, as_chat=True):
    (document,) = tokenize_examples([example], tokenizer, as_chat=as_chat)
    return document


def learned(tokenizer, document):
    return tokenizer.decode([i for i, target in zip(document.ids, document.targets, strict=True) if target])


def test_text_is_learned_whole_and_ends_with_the_end(tokenizer):
    document = tokenized(tokenizer, Example(text="alpha beta"))
    assert document.targets is None
    assert tokenizer.decode(document.ids) == "alpha beta<|endoftext|>"


def test_every_string_survives_a_trained_tokenizer(tokenizer):
    for text in ("héllo wörld", "日本語 🎉", "\t tabs \r\n", "<|user|>"):
        assert tokenizer.decode(tokenized(tokenizer, Example(text=text)).ids[:-1]) == text


def test_only_answers_of_a_chat_are_learned_with_their_end(tokenizer):
    document = tokenized(tokenizer, Example(messages=CHAT))
    assert tokenizer.decode(document.ids).count("<|endoftext|>") == 4
    assert learned(tokenizer, document) == "alpha<|endoftext|>alpha alpha<|endoftext|>"


def test_only_the_completion_of_a_pair_is_learned(tokenizer):
    document = tokenized(tokenizer, Example(prompt="say alpha: ", completion="alpha"), as_chat=False)
    assert tokenizer.decode(document.ids) == "say alpha: alpha<|endoftext|>"
    assert learned(tokenizer, document) == " alpha<|endoftext|>"


def test_a_pair_becomes_a_chat_where_there_is_a_template(tokenizer):
    document = tokenized(tokenizer, Example(prompt="say alpha", completion="alpha"))
    assert tokenizer.decode(document.ids).startswith("<|user|>say alpha<|endoftext|><|assistant|>alpha")
    assert learned(tokenizer, document) == "alpha<|endoftext|>"


@pytest.fixture
def other_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        pytest.param(None, "no chat template", id="no template"),
        pytest.param("{{ raise_exception('only users') }}", "refuses a chat: only users", id="template that refuses"),
        pytest.param("{{ messages | length }}{{ messages }}", "renders earlier turns differently", id="not appending"),
    ],
)
def test_a_template_that_cannot_be_used_is_a_sentence(other_tokenizer, template, message):
    other_tokenizer.chat_template = template
    with pytest.raises(UserError, match=message) as error:
        tokenized(other_tokenizer, Example(messages=CHAT))
    assert error.value.reason == "InvalidData"


def test_a_folder_without_a_tokenizer_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"models:/x/1 has no tokenizer that can be loaded"):
        load_tokenizer(tmp_path, "models:/x/1")


@pytest.mark.parametrize(("name", "text"), [("tokenizer.json", "{}"), ("config.json", "null")])
def test_a_tokenizer_beside_a_damaged_file_is_a_sentence(other_tokenizer, tmp_path, name, text):
    other_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"^m has no tokenizer that can be loaded: .+; check its JSON files$"):
        load_tokenizer(tmp_path, "m")
