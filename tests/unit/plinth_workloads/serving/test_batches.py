"""Rows that join, decode and leave together have the logits that each has alone, without a cache, in both kinds."""

import resource
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    Qwen3Config,
)

from plinth_api.adaptation import Method
from plinth_workloads.models.adapters import attach
from plinth_workloads.serving import slot_attention
from plinth_workloads.serving.batch import Piece
from plinth_workloads.serving.compiled_model import is_one_token_each
from plinth_workloads.serving.lazy_zeros import lazy_zeros
from plinth_workloads.serving.padded_batch import PaddedBatch
from plinth_workloads.serving.slotted_batch import SlottedBatch, slotted_batch
from plinth_workloads.serving.torch_engine import TorchEngine
from unit.plinth_workloads.serving.tiny_model import CONTEXT_LENGTH, count_compiled_steps, make_model, make_tokenizer

METHODS = {
    "none": None,
    "prefix": {"prefix": {"numVirtualTokens": 5}},
    "prompt": {"prompt": {"numVirtualTokens": 5}},
    "promptEncoder": {"promptEncoder": {"numVirtualTokens": 5}},
}
SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
DECODERS = {
    "mistral, every layer with a window": MistralConfig(**SIZES, sliding_window=4),
    "gemma3, some layers with a window": Gemma3TextConfig(
        **SIZES, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3),
    "gpt-neox": GPTNeoXConfig(**{**SIZES, "num_key_value_heads": 4}),
    "qwen3": Qwen3Config(**SIZES),
    "phi3": Phi3Config(**SIZES),
    "mixtral, experts": MixtralConfig(**SIZES, num_local_experts=4),
    "opt": OPTConfig(
        vocab_size=99,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        init_std=0.3,
    ),
}
OTHERS = {
    "bloom, positions added to attention": BloomConfig(
        vocab_size=99, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3
    ),
    "gemma2, capped attention": Gemma2Config(**SIZES, sliding_window=16, attn_logit_softcapping=5.0),
}


def make_adapted(name):
    model, method = make_model(), METHODS[name]
    if method is None:
        return model
    return attach(model, Method.model_validate(method), make_tokenizer(), "models:/a/1", 64).eval()


def make_decoder(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def slots(model, *, max_rows=4, max_length=64, max_bytes=2**30):
    return slotted_batch(model, max_rows=max_rows, max_length=max_length, max_bytes=max_bytes)


class Rows:
    """Rows of a batch, each checked after every step against the logits that it has alone."""

    def __init__(self, batch, model):
        self.batch, self.model, self.rows = batch, model, {}

    def open(self, name, ids):
        self.rows[name] = (self.batch.open(ids), list(ids))
        return self.rows[name][0]

    def step(self, **counts):
        """Read so many tokens of each row; a row that has no more to read says one."""
        for name in counts:
            row, ids = self.rows[name]
            if row.length == len(ids):
                ids.append(20 + len(ids) % 60)
        pieces = [self._piece(name, count) for name, count in counts.items()]
        assert self.batch.make_room(pieces)
        for name, logits_V in zip(counts, self.batch.forward(pieces), strict=True):
            row, ids = self.rows[name]
            torch.testing.assert_close(logits_V, self._alone(ids[: row.length]), rtol=1e-3, atol=1e-3)

    def close(self, name):
        self.batch.close(self.rows.pop(name)[0])

    def _piece(self, name, count):
        row, ids = self.rows[name]
        return Piece(row, ids[row.length : row.length + count])

    def _alone(self, ids):
        return self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def tell_a_story(rows):
    """Rows join, decode and leave."""
    rows.open("a", [1, 2, 3])
    rows.open("b", [4, 5, 6, 7, 8, 9, 10])
    rows.step(a=3, b=7)
    rows.step(b=1, a=1)
    rows.open("c", [11])
    rows.open("d", [12, 13, 14, 15])
    rows.step(a=1, b=1, c=1, d=4)
    rows.step(a=1, b=1, c=1, d=1)
    rows.close("b")  # the longest leaves, and what only it needed
    rows.close("d")
    rows.step(a=1, c=1)
    rows.open("e", list(range(30, 50)))
    rows.step(a=1, c=1, e=20)
    rows.close("a")
    for _ in range(6):
        rows.step(c=1, e=1)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_in_slots_is_what_it_is_alone(name):
    model = make_adapted(name)
    tell_a_story(Rows(slots(model), model))


@pytest.mark.parametrize("name", METHODS)
def test_a_padded_row_is_what_it_is_alone(name):
    model = make_adapted(name)
    tell_a_story(Rows(PaddedBatch(model, max_rows=4, max_length=64), model))


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_in_slots_is_what_it_is_alone(name):
    model = make_decoder(DECODERS[name])
    batch = slots(model)
    assert isinstance(batch, SlottedBatch)
    tell_a_story(Rows(batch, model))


@pytest.mark.parametrize("name", OTHERS)
def test_a_decoder_with_another_attention_is_decoded_in_padded_rows(name):
    model = make_decoder(OTHERS[name])
    before = model.config._attn_implementation
    assert slots(model) is None
    assert model.config._attn_implementation == before
    tell_a_story(Rows(PaddedBatch(model, max_rows=4, max_length=64), model))


@pytest.mark.parametrize("name", ["mistral, every layer with a window", "gemma3, some layers with a window", "qwen3"])
def test_a_prompt_in_pieces_is_what_it_is_whole(name):
    model = make_decoder(DECODERS[name])
    rows = Rows(slots(model), model)
    rows.open("short", [1, 2])
    rows.step(short=2)
    rows.open("long", [3 + number % 40 for number in range(40)])
    for _ in range(8):
        rows.step(short=1, long=5)
    rows.step(short=1, long=1)


def test_the_beginning_that_rows_share_is_read_once():
    model = make_model()
    rows = Rows(slots(model), model)
    shared = [5 + number % 90 for number in range(35)]
    assert rows.open("first", [*shared, 1, 2]).length == 0
    rows.step(first=37)
    assert rows.open("beside", [*shared, 3]).length == 32
    rows.step(first=1, beside=4)
    rows.close("first")
    assert rows.open("after", [*shared, 4]).length == 32
    assert rows.open("same", shared[:32]).length == 16  # at least one token is read: its logits are asked for
    assert rows.open("other", [9, *shared]).length == 0
    rows.step(beside=1, after=4, same=16, other=36)
    use = rows.batch.use()
    assert (use.prompt_tokens, use.reused_tokens) == (37 + 36 + 36 + 32 + 36, 32 + 32 + 16)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_row_has_said_is_the_beginning_of_the_next_turn(name):
    model = make_adapted(name)
    rows = Rows(slots(model, max_rows=2), model)
    rows.open("first", [1, 2, 3])
    rows.step(first=3)
    for _ in range(30):
        rows.step(first=1)
    said = rows.rows["first"][1]
    rows.close("first")
    assert rows.open("second", [*said, 7, 8]).length == 32
    rows.step(second=3)


def test_slots_that_nobody_needs_are_given_away_the_longest_unused_first():
    model = make_model()
    rows = Rows(slots(model, max_rows=2), model)
    prompts = {name: [start + number for number in range(20)] for name, start in (("a", 1), ("b", 40), ("c", 80))}
    for name in ("a", "b"):
        rows.open(name, prompts[name])
        rows.step(**{name: 20})
        rows.close(name)
    rows.open("c", prompts["c"])
    rows.step(c=20)
    assert rows.batch.open(prompts["a"]).length == 0
    rows.close("c")
    assert rows.batch.open(prompts["c"]).length == 16


def test_there_is_room_for_as_many_rows_as_there_may_be_and_no_more():
    batch = slots(make_model(), max_rows=3)
    opened = [batch.open([1, 2, 3]) for _ in range(4)]
    assert [row is not None for row in opened] == [True, True, True, False]
    batch.close(opened[0])
    assert batch.open([1, 2, 3]) is not None


def test_where_memory_is_short_longer_rows_are_fewer_and_go_on_where_others_leave():
    model = make_decoder(Qwen3Config(**{**SIZES, "max_position_embeddings": 2048}))
    position_bytes = 2 * 2 * 2 * 8 * 4  # keys and values of 2 layers with 2 heads of 8 floats
    rows = Rows(slots(model, max_rows=8, max_length=1024, max_bytes=1024 * position_bytes), model)
    names = ["a", "b", "c", "d"]
    for name in names:
        rows.open(name, [1 + ord(name) % 50] * 250)
    assert rows.batch.open([1]) is None
    rows.step(a=250, b=250, c=250, d=250)
    row, ids = rows.rows["a"]
    longer = [Piece(row, [7] * 20)]
    assert not rows.batch.make_room(longer)
    rows.close("b")
    rows.close("c")
    assert rows.batch.make_room(longer)  # two slots of 512 now
    ids += [7] * 20
    rows.step(a=20, d=1)
    assert rows.batch.open([1]) is None
    rows.close("a")
    assert rows.batch.open([1]) is not None
    rows.close("d")
    # With the long rows gone there are short slots again.
    opened = [rows.batch.open([1]) for _ in range(3)]
    assert None not in opened


def test_what_is_not_a_number_stays_in_its_row():
    model = make_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[99] = float("nan")
    batch = slots(model, max_rows=2)
    bad, good = batch.open([1, 99, *range(2, 30)]), batch.open([1, 2, 3])
    logits_RV = batch.forward([Piece(bad, [1, 99, *range(2, 30)]), Piece(good, [1, 2, 3])])
    assert logits_RV.isfinite().all(dim=-1).tolist() == [False, True]
    batch.close(bad, spoiled=True)
    after = batch.open([1, 99, *range(2, 30)])
    assert after.length == 0
    clean = batch.forward([Piece(after, [1, 2]), Piece(good, [4])])
    assert clean.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_virtual_tokens_take_positions_from_the_context(name):
    engine = TorchEngine(make_adapted(name), make_tokenizer())
    assert engine.context_length == CONTEXT_LENGTH - (0 if name == "none" else 5)


@pytest.mark.parametrize("bytes_of_a_call", [0, 2**30])
@pytest.mark.parametrize("name", ["gemma3, some layers with a window", "gpt2"])
def test_rows_with_unused_slots_between_them_are_what_they_are_alone(name, bytes_of_a_call, monkeypatch):
    monkeypatch.setattr(slot_attention, "_BYTES_OF_A_CALL", {"cpu": bytes_of_a_call})
    model = make_decoder(DECODERS[name])
    rows = Rows(slots(model, max_rows=16), model)
    for number in range(12):
        rows.open(f"r{number}", [1 + number, 2, 3 + number])
        rows.step(**{f"r{number}": 3})
    for number in (0, 2, 3, 4, 5, 8):
        rows.close(f"r{number}")
    left = ["r1", "r6", "r7", "r9", "r10", "r11"]
    for _ in range(3):
        rows.step(**dict.fromkeys(left, 1))
    rows.step(r11=1, r1=1)


def test_rows_begin_side_by_side_and_what_others_left_is_found_elsewhere():
    model = make_model()
    rows = Rows(slots(model), model)
    prompts = {name: [first + number % 40 for number in range(35)] for first, name in enumerate("abcde", start=5)}
    for name in "abcd":
        rows.open(name, prompts[name])
        rows.step(**{name: 35})
    rows.close("b")
    rows.close("a")
    assert rows.open("e", prompts["e"]).slot == 0  # in the place of b, which is the oldest, and before it
    rows.step(e=35, d=1)
    again = rows.open("a", prompts["a"])
    assert (again.slot, again.length) == (1, 32)
    rows.step(a=3, e=1)
    rows.close("e")
    rows.close("d")
    again = rows.open("d", prompts["d"])
    assert (again.slot, again.length) == (0, 32)
    rows.step(d=3, a=1, c=1)
    again = rows.open("e", prompts["e"])
    assert (again.slot, again.length) == (3, 32)
    rows.step(e=3, d=1, a=1, c=1)


@pytest.fixture
def read_as_python(monkeypatch):
    """What would be compiled is read as Python; how many rows each call had is told."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    return count_compiled_steps(monkeypatch)


@pytest.mark.parametrize("model", [*METHODS, *DECODERS])
def test_rows_whose_steps_are_compiled_are_what_they_are_alone(model, read_as_python):
    model = make_adapted(model) if model in METHODS else make_decoder(DECODERS[model])
    batch = slots(model)
    batch.compile()
    assert read_as_python == [1, 3]
    tell_a_story(Rows(batch, model))
    assert read_as_python == [1, 3, 2, 4, 2, *[2] * 6]


def test_what_compiles_to_something_else_is_not_used(monkeypatch, caplog):
    model = make_model()
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *given: function(*given) + 1)
    batch = slots(model)
    batch.compile()
    assert "LlamaForCausalLM is not compiled: its output differs by 1" in caplog.text
    tell_a_story(Rows(batch, model))


def test_padded_rows_say_that_they_are_not_compiled(caplog):
    PaddedBatch(make_model(), max_rows=2, max_length=8).compile()
    assert "padded rows, which are not compiled" in caplog.text


@pytest.mark.parametrize(
    ("rows", "can"),
    [
        ([(0, 5, 1)], True),
        ([(0, 5, 1), (1, 9, 1)], True),
        ([(0, 5, 1), (1, 9, 2)], False),  # a piece of a prompt
        ([(3, 5, 1)], True),
        ([(0, 5, 1), (4, 5, 1)], False),  # slots that nobody uses
        ([(0, 5, 1), (1, 9, 1), (2, 90, 1)], False),  # the others would look as far as the longest
    ],
)
def test_steps_of_one_token_of_rows_that_are_alike_are_compiled(rows, can):
    assert is_one_token_each(rows) is can


def test_slots_that_nobody_has_reached_take_no_memory():
    before = resident_bytes()
    zeros = lazy_zeros((64, 2**20), like=torch.zeros(1))
    zeros[3] = 1
    assert resident_bytes() - before < 2 * zeros[3].nbytes < zeros.nbytes / 10
    assert zeros[2].count_nonzero() == zeros[4].count_nonzero() == 0


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
