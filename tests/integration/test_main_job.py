"""The demo's three YAML files, made short: a pretrained, tuned, registered and served model on real data."""

import email
import json
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import mlflow
import openai
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from commands import plinth, start_plinth
from openai_options import CHAT, OF_CHATS, OF_COMPLETIONS, SCHEMA, TOOL, chat, complete
from plinth_workloads.models.fetch import fetch_model
from plinth_workloads.models.load import load_for_inference
from plinth_workloads.serving.torch_engine import TorchEngine
from plinth_workloads.train.progress import read_progress
from served_here import NAME, service_here
from servers import free_port
from unit.plinth_workloads.serving.tools import TOOL_TEMPLATE

# Ray starts several times in one test: beside a busy neighbour that takes longer than the limit of the others.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

DEMO = Path(__file__).parents[2] / "examples" / "demo"
READY = "pycode: ready at "


def shortened(folder):
    """The demo's files with fewer steps and a gate that so few steps can pass."""
    files = []
    for name in ("pretrain.yaml", "finetune.yaml", "service.yaml"):
        document = yaml.safe_load((DEMO / name).read_text())
        if name == "pretrain.yaml":
            document["spec"]["training"].update(steps=60, schedule={"warmupSteps": 5})
            document["spec"]["evaluation"]["gate"] = [{"metric": "perplexity", "max": 900}]
            document["spec"]["evaluation"]["everySteps"] = 60
        if name == "finetune.yaml":
            document["spec"]["training"].update(steps=30, schedule={"warmupSteps": 5})
        if name == "service.yaml":
            document["spec"]["adapters"] = [{"name": "misfit", "uri": "models:/pycode-docstrings@champion"}]
        files.append(folder / name)
        files[-1].write_text(yaml.safe_dump(document))
    return files


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Everything run, the service up."""
    folder = tmp_path_factory.mktemp("demo")
    home = folder / "home"
    prepare = [sys.executable, str(DEMO / "prepare.py"), "--output", str(home / "volumes" / "corpora")]
    subprocess.run([*prepare, "--source", str(some_packages(folder / "source"))], check=True, capture_output=True)
    process = start_plinth("run", *shortened(folder), "--home", home, "--port", str(free_port()))
    try:
        lines = lines_until_ready(process)
        client = openai.OpenAI(
            base_url=f"{lines[-1].split(READY)[1].strip()}/v1", api_key="local", max_retries=0, timeout=60
        )
        yield SimpleNamespace(home=home, uri=f"sqlite:///{home}/mlflow.db", client=client, process=process, lines=lines)
    finally:
        # Also where it took too long: a service that is left behind takes the machine from every later test.
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=60)
    assert code == 0


def lines_until_ready(process):
    """What the command prints until its service answers."""
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if READY in line:
            return lines
    raise AssertionError("".join(lines))


def some_packages(folder):
    """A part of the standard library that is quick to tokenize."""
    library = Path(email.__file__).parents[1]
    for name in (
        "asyncio",
        "email",
        "html",
        "http",
        "importlib",
        "json",
        "logging",
        "multiprocessing",
        "unittest",
        "xml",
    ):
        shutil.copytree(library / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in library.glob("[a-p]*.py"):
        shutil.copy(file, folder)
    return folder


def events_of(demo, job):
    (folder,) = demo.home.glob(f"runs/*{job}*")
    return [event for event, _ in read_progress(folder)]


def test_the_tuned_model_beats_its_base_and_moves_the_alias(demo):
    (registered,) = [event for event in events_of(demo, "pycode-docstrings") if event["event"] == "model"]
    assert registered["gate"] == "Passed"
    (finding,) = registered["findings"]
    assert finding.startswith("passed: loss ")
    assert "better than base's" in finding
    client = mlflow.MlflowClient(demo.uri, demo.uri)
    version = client.get_model_version_by_alias("pycode-docstrings", "champion")
    assert version.tags["plinth.baseModel"] == "models:/pycode-base/1"
    assert version.tags["plinth.dataFingerprint"]
    assert version.run_id in {run.info.run_id for run in client.search_runs(["1", "2"])}


def test_the_run_has_its_inputs_and_its_picture(demo):
    client = mlflow.MlflowClient(demo.uri, demo.uri)
    version = client.get_model_version_by_alias("pycode-base", "champion")
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["training.learningRate"] == "0.005"
    assert {"train/loss", "train/tokens_per_sec", "train/grad_norm", "val/perplexity"} <= set(run.data.metrics)
    assert {item.path for item in client.list_artifacts(version.run_id)} >= {"model", "run.json", "loss.png"}


def use_server(uri):
    """A test before this one may have named another registry, which would go on being asked."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)


def test_a_full_model_opens_with_transformers_and_with_mlflow(demo, tmp_path):
    use_server(demo.uri)
    folder = mlflow.artifacts.download_artifacts("models:/pycode-base@champion", dst_path=str(tmp_path))
    assert not list(Path(folder).rglob("*.bin"))
    assert not list(Path(folder).rglob("*.pkl"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer("import os\n")["input_ids"]])
    pipeline = mlflow.transformers.load_model("models:/pycode-base@champion")
    with torch.no_grad():
        torch.testing.assert_close(pipeline.model(ids.to(pipeline.device)).logits.cpu(), model(ids).logits)
    answer = pipeline("import", max_new_tokens=3, do_sample=False)
    assert answer[0]["generated_text"].startswith("import")


def test_an_adapter_opens_with_peft_and_finds_its_base_by_uri(demo, tmp_path):
    use_server(demo.uri)
    folder = mlflow.artifacts.download_artifacts(
        "models:/pycode-docstrings@champion", dst_path=str(tmp_path / "adapter")
    )
    base_folder = mlflow.artifacts.download_artifacts("models:/pycode-base/1", dst_path=str(tmp_path / "base"))
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folder).eval()
    found, tokenizer = load_for_inference("models:/pycode-docstrings/1", tracking_uri=demo.uri, cache_dir=tmp_path)
    ids = torch.tensor([tokenizer("def f(x):")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_service_answers_the_openai_client(demo):
    cards = {card.id: card.root for card in demo.client.models.list()}
    assert list(cards) == ["pycode", "misfit", "pycode@champion", "misfit@champion"]
    assert cards["pycode@champion"] == cards["pycode"] == "models:/pycode-docstrings/1"
    completion = demo.client.completions.create(model="pycode", prompt="import ", max_tokens=8, temperature=0)
    by_alias = demo.client.completions.create(model="pycode@champion", prompt="import ", max_tokens=8, temperature=0)
    assert completion.choices[0].text == by_alias.choices[0].text != ""
    assert completion.usage.completion_tokens <= 8
    question = [{"role": "user", "content": "Write a docstring for this Python code.\n\ndef close(self):"}]
    stream = demo.client.chat.completions.create(model="pycode", messages=question, max_tokens=8, stream=True, seed=1)
    pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces)


def test_an_adapter_of_another_model_is_refused_with_the_reason_and_the_others_are_answered(demo):
    with pytest.raises(openai.InternalServerError) as raised:
        complete(demo.client, "misfit", "import ")
    assert raised.value.status_code == 503
    assert "was trained for models:/pycode-base/1, and models:/pycode-docstrings/1 is served" in str(raised.value)
    assert complete(demo.client, "pycode", "import ").choices[0].text


@pytest.mark.parametrize(
    ("ask", "options"),
    [pytest.param(complete, OF_COMPLETIONS, id="completions"), pytest.param(chat, OF_CHATS, id="chats")],
)
def test_every_option_is_taken_or_refused_by_its_name(demo, ask, options):
    what = "import " if ask is complete else CHAT
    for option in options:
        answer = ask(demo.client, "pycode", what, **option.parameters)
        usage = [chunk.usage for chunk in answer][-1] if option.name == "stream_options" else answer.usage
        assert usage.completion_tokens > 0, option
        if option.wrong is not None:
            with pytest.raises(openai.BadRequestError) as raised:
                ask(demo.client, "pycode", what, **{**option.parameters, option.name: option.wrong})
            assert (raised.value.param or "").split(".")[0] == option.name, raised.value


def test_a_choice_without_chance_is_one_whichever_way_it_is_asked_for(demo):
    greedy = complete(demo.client, "pycode", "import ", logprobs=2).choices[0]
    for option in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1}, {"temperature": 0, "n": 2}):
        answer = complete(demo.client, "pycode", "import ", **{"temperature": 2, **option})
        assert {choice.text for choice in answer.choices} == {greedy.text}, option
    assert "".join(greedy.logprobs.tokens) == greedy.text
    likeliest = [max(top.values()) for top in greedy.logprobs.top_logprobs]
    assert greedy.logprobs.token_logprobs == pytest.approx(likeliest, abs=1e-4)


def test_the_options_do_what_they_say(demo):
    ask = partial(complete, demo.client, "pycode", "import ")
    greedy = ask().choices[0].text
    stop = greedy[3:6]
    assert ask(stop=stop).choices[0].text == greedy[: greedy.index(stop)]
    assert (
        ask(logit_bias={"7": 100}, repetition_penalty=1).choices[0].text == ask(logit_bias={"7": 100}).choices[0].text
    )
    pair = {"logit_bias": {"70": 100, "71": 100}}
    assert len(set(ask(**pair, repetition_penalty=10, max_tokens=2, logprobs=0).choices[0].logprobs.tokens)) == 2
    seeded = [ask(temperature=1, seed=3, n=number).choices for number in (1, 3)]
    assert seeded[0][0].text == seeded[1][0].text
    assert len({choice.text for choice in seeded[1]}) > 1
    assert len(ask(max_tokens=3, logprobs=0).choices[0].logprobs.tokens) == 3


def test_what_a_text_has_to_look_like(demo):
    ask = partial(complete, demo.client, "pycode", "import ", max_tokens=180)
    assert re.fullmatch("[0-9]{4}", ask(structured_outputs={"regex": "[0-9]{4}"}).choices[0].text)
    assert ask(structured_outputs={"choice": ["yes", "no"]}).choices[0].text in ("yes", "no")
    assert ask(structured_outputs={"grammar": 'start: "a" "b"'}).choices[0].text == "ab"
    schema = {"type": "json_schema", "json_schema": {"name": "kind", "schema": SCHEMA}}
    stream = chat(demo.client, "pycode", response_format=schema, max_tokens=180, stream=True)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert set(json.loads(said)) == {"kind"}
    assert json.loads(ask(structured_outputs={"json": SCHEMA}).choices[0].text)["kind"] in ("a", "b")


def test_prompts_and_messages_come_in_all_forms(demo):
    ask = partial(complete, demo.client, "pycode")
    alone = [ask(text).choices[0].text for text in ("import ", "def f(")]
    assert [choice.text for choice in ask(["import ", "def f("]).choices] == alone
    assert len(ask([[5, 6, 7], [8]]).choices) == len(ask([5, 6]).choices) + 1
    parts = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    assert (
        chat(demo.client, "pycode", parts).usage.prompt_tokens
        > chat(demo.client, "pycode", parts[1:]).usage.prompt_tokens
    )
    assert demo.client.models.retrieve("pycode").max_model_len > 0
    with pytest.raises(openai.NotFoundError, match="this service serves 'pycode', 'misfit'"):
        demo.client.models.retrieve("another")
    with pytest.raises(openai.BadRequestError, match="ask /v1/chat/completions or /v1/completions"):
        demo.client.embeddings.create(model="pycode", input="a")
    with pytest.raises(openai.BadRequestError, match="tools"):
        chat(demo.client, "pycode", tools=[TOOL], tool_choice="required")


BEGINNING = "def read(path, mode):\n    with open(path, mode) as file:\n        return file.read().splitlines()\n\n\n"
PROMPTS = [
    "import os\n",
    "return ",
    BEGINNING,
    f"{BEGINNING}class Reader:\n    def ",
    f"{BEGINNING}def close(self):\n    ",
]


def generated(model, tokenizer, prompt):
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    with torch.inference_mode():
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_answers_are_what_generate_says_alone_together_again_and_with_an_adapter(demo, tmp_path):
    load = partial(load_for_inference, tracking_uri=demo.uri, cache_dir=tmp_path)
    (base, tokenizer), (tuned, _) = load("models:/pycode-base/1"), load("models:/pycode-docstrings/1")
    models = {NAME: base, "docstrings": tuned}
    expected = {
        (name, prompt): generated(model, tokenizer, prompt) for name, model in models.items() for prompt in PROMPTS
    }
    assert any(expected[NAME, prompt] != expected["docstrings", prompt] for prompt in PROMPTS)
    tokenizer.chat_template = TOOL_TEMPLATE
    adapter = fetch_model("models:/pycode-docstrings/1", tracking_uri=demo.uri, cache_dir=tmp_path)
    with service_here(lambda: TorchEngine(base, tokenizer), {"docstrings": adapter}) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="local", max_retries=0)

        def said(asked):
            return complete(client, *asked, max_tokens=24).choices[0].text

        def reused():
            scrape = httpx.get(f"{url}/metrics").text
            return float(re.search(r"^plinth_prefix_cache_hits_total\S* (\S+)", scrape, re.MULTILINE)[1])

        alone, before = {asked: said(asked) for asked in expected}, reused()
        last = next(reversed(expected))
        assert said(last) == expected[last]
        assert reused() > before, "its beginning was not read again"
        with ThreadPoolExecutor(len(expected)) as pool:
            together = dict(zip(expected, pool.map(said, expected), strict=True))
        assert together == alone == expected
        look = {"type": "function", "function": {"name": "look"}}
        for choice in (look, "required"):
            answer = chat(client, NAME, tools=[TOOL], tool_choice=choice, max_tokens=150).choices[0]
            (call,) = answer.message.tool_calls
            assert (call.function.name, set(json.loads(call.function.arguments))) == ("look", {"kind"})
        stream = chat(client, NAME, tools=[TOOL], tool_choice=look, max_tokens=150, stream=True)
        pieces = [call for chunk in stream for choice in chunk.choices for call in choice.delta.tool_calls or ()]
        assert json.loads("".join(piece.function.arguments for piece in pieces))["kind"] in ("a", "b")


def test_a_port_in_use_is_a_sentence(demo):
    port = demo.client.base_url.port
    code, output = plinth("serve", DEMO / "service.yaml", "--home", demo.home, "--port", str(port))
    assert code == 2
    assert f"port {port} is in use; choose another with --port" in output
    assert "Traceback" not in output


def test_nothing_was_said_but_what_a_person_reads(demo):
    assert "Traceback" not in "".join(demo.lines)
