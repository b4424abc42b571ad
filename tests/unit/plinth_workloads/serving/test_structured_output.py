"""Texts that look as a request says, from a model that knows nothing."""

import asyncio
import json
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import jsonschema
import pytest
import torch
from llguidance import LLParserLimits
from tokenizers import Tokenizer

from plinth_workloads.models.tokenizers import load_tokenizer, train_tokenizer
from plinth_workloads.serving import structured_output
from plinth_workloads.serving.engine import EngineOverloaded, GenerationFailed, InvalidParameter, StructuredOutput
from plinth_workloads.serving.protocol import ChatBody
from plinth_workloads.serving.structured_output import StructuredOutputs
from unit.plinth_workloads.serving.tiny_model import (
    END_ID,
    collect,
    greedy_text,
    make_model,
    make_request,
    make_tokenizer,
    running_engine,
)
from unit.plinth_workloads.serving.tools import tool

pytestmark = pytest.mark.anyio

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "name": {"type": "string", "maxLength": 4},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 2},
    },
    "required": ["colour", "count", "name"],
    "additionalProperties": False,
    "$defs": {"part": {"type": "boolean"}},
}


REQUIRED = ChatBody.model_validate(
    {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "tools": [tool("f", type="object")],
        "tool_choice": "required",
    }
)


def structure(kind, text, param="structured_outputs"):
    return StructuredOutput(kind, text if isinstance(text, str) else json.dumps(text), param)


def asked(kind, text, **sampling):
    return make_request("abc", **{"max_tokens": 600, "structure": structure(kind, text), **sampling})


def structured(*, end_ids=frozenset({END_ID}), vocab_size=257):
    return StructuredOutputs(make_tokenizer(), end_ids=end_ids, vocab_size=vocab_size)


async def allowed_after(made, wanted, *, vocab_size=257, **options):
    """Which tokens can follow."""
    constraint = await structured(vocab_size=vocab_size, **options).constraint_of(wanted)
    for token in make_tokenizer().encode(made):
        constraint.add(token)
    logits_V = torch.zeros(vocab_size)
    constraint.apply_(logits_V)
    assert logits_V.unique().tolist() in ([float("-inf"), 0.0], [float("-inf")])
    return set((logits_V == 0).nonzero().flatten().tolist()), constraint.is_complete


@pytest.mark.parametrize("end_ids", [None, END_ID])
async def test_a_random_model_says_what_the_schema_says_beside_rows_that_are_as_alone(end_ids):
    model = make_model(end_ids=end_ids)
    free = make_request("once", max_tokens=40, temperature=1.0, seed=7)
    bound = [asked("json_schema", SCHEMA, temperature=1.0, seed=seed) for seed in range(5)]
    async with running_engine(model, context_length=1024) as engine:
        alone = await collect(engine, free)
        greedy, together, *results = await asyncio.gather(
            *(collect(engine, request) for request in (make_request("abc", max_tokens=40), free, *bound))
        )

    assert greedy[0] == greedy_text(model, "abc", 40)
    # Of the last piece the text alone may differ: in company it holds what a few steps have made.
    assert (together[0], replace(together[1], text="")) == (alone[0], replace(alone[1], text=""))
    assert len({text for text, _ in results}) == 5
    for text, last in results:
        jsonschema.validate(json.loads(text), SCHEMA)
        assert last.finish_reason == "stop"


async def test_a_text_without_an_end_token_ends_where_it_can_only_end():
    async with running_engine(make_model(end_ids=None)) as engine:
        closed, last = await collect(engine, asked("regex", "[ab]{3}-[0-9]{2}", max_tokens=50, temperature=1.0))
        open_ended, full = await collect(engine, asked("regex", "[ab]+", max_tokens=50, temperature=1.0))

    assert re.fullmatch("[ab]{3}-[0-9]{2}", closed)
    assert (last.finish_reason, last.num_completion_tokens) == ("stop", 6)
    assert re.fullmatch("[ab]{50}", open_ended)
    assert full.finish_reason == "length"


@pytest.mark.parametrize("choices", [["a", "ab", "abc"], ['say "é"\n', "C:\\", "/x/", "{}"]])
async def test_one_of_the_choices_is_said_and_each_of_them_can_be(choices):
    said = set()
    async with running_engine(make_model(end_ids=END_ID)) as engine:
        for seed in range(3):
            request = asked("choice", choices, max_tokens=20, temperature=2.0, seed=seed)
            said.add((await collect(engine, request))[0])
    for choice in choices:
        _, complete = await allowed_after(choice, structure("choice", choices))
        assert complete == (not any(other.startswith(choice) and other != choice for other in choices))

    assert said <= set(choices)


async def test_a_grammar_is_kept_to():
    grammar = 'start: "(" inner ")"\ninner: /[xy]/ | start'
    async with running_engine(make_model(end_ids=None)) as engine:
        text, _ = await collect(engine, asked("grammar", grammar, max_tokens=100, logit_bias=((40, -100.0),)))

    assert re.fullmatch(r"\(+[xy]\)+", text)
    assert text.count("(") == text.count(")")


async def test_the_end_is_allowed_where_the_text_may_end_by_any_of_the_model_s_end_tokens():
    one, two = END_ID, ord("z")
    letters = make_tokenizer().encode("ab")
    wanted, ends = structure("regex", "a+b?"), frozenset({one, two, 999})

    assert await allowed_after("", wanted, end_ids=ends) == ({letters[0]}, False)
    assert await allowed_after("aa", wanted, end_ids=ends) == ({*letters, one, two}, False)
    assert await allowed_after("aab", wanted, end_ids=ends) == ({one, two}, True)
    assert await allowed_after("aab", wanted, end_ids=frozenset()) == (set(), True)


@pytest.mark.parametrize("vocab_size", [200, 257, 320])
async def test_logits_may_have_more_or_fewer_tokens_than_the_tokenizer(vocab_size):
    allowed, _ = await allowed_after("", structure("regex", "(?s:.)+"), end_ids=frozenset(), vocab_size=vocab_size)
    known, _ = await allowed_after("", structure("regex", "(?s:.)+"), end_ids=frozenset())

    assert allowed == {token for token in known if token < vocab_size}
    assert len(known) > 128


async def test_tokens_of_several_letters_come_where_all_of_them_fit_and_tokens_of_roles_never(tmp_path):
    train_tokenizer(['{"colour": "green", "count": 12, "name": "x"}', "the red cat"] * 20, 320, tmp_path)
    tokenizer = load_tokenizer(tmp_path, "m")
    end_id, vocab_size = tokenizer.eos_token_id, len(tokenizer)
    structures = StructuredOutputs(tokenizer, end_ids=frozenset({end_id}), vocab_size=vocab_size)
    longest = 0
    for seed in range(5):
        constraint = await structures.constraint_of(structure("json_schema", SCHEMA))
        made, draw = [], random.Random(seed)
        while not constraint.is_complete:
            logits_V = torch.zeros(vocab_size)
            constraint.apply_(logits_V)
            made.append(draw.choice((logits_V == 0).nonzero().flatten().tolist()))
            constraint.add(made[-1])
        longest = max(longest, *(len(tokenizer.decode([token])) for token in made))
        jsonschema.validate(json.loads(tokenizer.decode(made, skip_special_tokens=False)), SCHEMA)

    assert longest > 1


@pytest.mark.parametrize(
    ("wanted", "opening"),
    [
        pytest.param(structure("json_schema", {"type": "object"}), "{", id="a schema"),
        pytest.param(REQUIRED.structure, '{"name": "f", "arguments": {', id="arguments"),
    ],
)
async def test_whitespace_in_json_is_bounded(wanted, opening):
    space, brace = make_tokenizer().encode(" }")

    allowed, _ = await allowed_after(opening + " " * 39, wanted)
    assert {space, brace} <= allowed
    allowed, _ = await allowed_after(opening + " " * 40, wanted)
    assert space not in allowed
    assert brace in allowed


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        pytest.param(
            "json_schema", {"type": "strin"}, "json schema is refused: Invalid type: strin", id="unknown type"
        ),
        pytest.param("json_schema", {"not": {"type": "null"}}, "Unimplemented keys", id="not understood"),
        pytest.param("json_schema", {"$ref": "#"}, "no text satisfies it", id="endless"),
        pytest.param("json_schema", {"$ref": "http://x/y"}, "http://x/y", id="elsewhere"),
        pytest.param("json_schema", {"enum": []}, "Unsatisfiable", id="unsatisfiable"),
        pytest.param("json_schema", {"enum": ["x" * 70_000]}, "more than 64 KiB; shorten it", id="long"),
        pytest.param("regex", "a(b", "unclosed group", id="expression"),
        pytest.param("regex", "(?=a)b", "look-around", id="look-ahead"),
        pytest.param("regex", "", "only the empty text satisfies it", id="empty"),
        pytest.param("grammar", "start: x", 'unknown name: "x"', id="grammar"),
        pytest.param(
            "grammar",
            "start: A25\nA0: /x/\n" + "\n".join(f"A{n}: A{n - 1} A{n - 1}" for n in range(1, 26)),
            "too big",
            id="grows while it is compiled",
        ),
    ],
)
async def test_what_cannot_be_compiled_is_refused_in_a_line_and_others_are_answered(kind, text, says):
    async with running_engine() as engine:
        with pytest.raises(InvalidParameter) as refused:
            await collect(engine, asked(kind, text, max_tokens=20))
        assert (await collect(engine, make_request("abc")))[0]

    assert refused.value.param == "structured_outputs"
    assert str(refused.value).startswith("structured_outputs: the ")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


async def test_an_object_may_have_many_optional_properties_and_the_vocabulary_many_ways_to_go_on():
    description = json.loads(make_tokenizer().backend_tokenizer.to_str())
    vocab = description["model"]["vocab"]
    draw = random.Random(0)
    for _ in range(20_000):
        vocab.setdefault("".join(draw.choices('abc",:{}', k=6)), len(vocab))
    description["added_tokens"] = []
    tokenizer = SimpleNamespace(backend_tokenizer=Tokenizer.from_str(json.dumps(description)))
    structures = StructuredOutputs(tokenizer, end_ids=frozenset(), vocab_size=len(vocab))
    properties = {f"{'abc'[n % 3]}{n}": {"type": "string"} for n in range(100)}
    constraint = await structures.constraint_of(structure("json_schema", {"properties": properties, "type": "object"}))
    for letter in '{"a":"b':
        constraint.add(vocab[letter])
    logits_V = torch.zeros(len(vocab))
    constraint.apply_(logits_V)

    assert any(logits_V[token] == 0 for text, token in vocab.items() if '","' in text)


async def test_a_text_that_becomes_too_much_to_compute_fails_alone(monkeypatch):
    # A limit of so few items stands for a grammar that is ambiguous over a long text.
    monkeypatch.setattr(structured_output, "LLParserLimits", lambda **_: LLParserLimits(max_items_in_row=8))
    ambiguous = "start: a a\na: " + " | ".join(f'"x{number % 3}" b{number}' for number in range(9))
    ambiguous += "".join(f'\nb{number}: "y"? "z"?' for number in range(9))
    async with running_engine(make_model(end_ids=None)) as engine:
        bad, good = await asyncio.gather(
            collect(engine, asked("grammar", ambiguous, max_tokens=40)),
            collect(engine, make_request("abc", max_tokens=20)),
            return_exceptions=True,
        )

    assert isinstance(bad, GenerationFailed)
    assert "could not be kept to its structure" in str(bad)
    assert good[1].num_completion_tokens == 20


async def test_a_token_that_cannot_follow_is_an_error():
    constraint = await structured().constraint_of(structure("regex", "ab"))
    with pytest.raises(GenerationFailed, match="could not be kept to its structure"):
        constraint.add(make_tokenizer().encode("z")[0])


async def test_the_same_structure_is_compiled_once_and_old_ones_are_forgotten(monkeypatch):
    compiled = []
    compile_one = structured_output._compile

    def counted(tokens, wanted):
        compiled.append(wanted.text)
        return compile_one(tokens, wanted)

    monkeypatch.setattr(structured_output, "_compile", counted)
    monkeypatch.setattr(structured_output, "_MAX_CACHED", 2)
    structures = structured()
    wanted = [structure("regex", text) for text in ("a", "a", "b", "a", "c", "a", "b")]
    constraints = [await structures.constraint_of(each) for each in wanted]
    constraints[0].add(make_tokenizer().encode("a")[0])

    assert compiled == ["a", "b", "c", "b"]
    assert (constraints[0].is_complete, constraints[1].is_complete) == (True, False)


async def test_more_than_may_wait_to_be_compiled_are_turned_away(monkeypatch):
    monkeypatch.setattr(structured_output, "_MAX_COMPILING", 2)
    structures = structured()
    results = await asyncio.gather(
        *(structures.constraint_of(structure("regex", "a" * number)) for number in range(1, 5)), return_exceptions=True
    )

    assert [isinstance(result, EngineOverloaded) for result in results] == [False, False, True, True]
    assert await structures.constraint_of(structure("regex", "b"))
    assert await structures.constraint_of(None) is None
