"""The demo's three YAML files, made short: a pretrained, tuned, registered and served model on real data."""

import email
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import openai
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from commands import plinth, start_plinth
from plinth_workloads.models.load import load_for_inference
from plinth_workloads.train.progress import read_progress
from servers import free_port

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
    assert [model.id for model in demo.client.models.list()] == ["pycode"]
    completion = demo.client.completions.create(model="pycode", prompt="import ", max_tokens=8, temperature=0)
    assert completion.choices[0].text
    assert completion.usage.completion_tokens <= 8
    question = [{"role": "user", "content": "Write a docstring for this Python code.\n\ndef close(self):"}]
    stream = demo.client.chat.completions.create(model="pycode", messages=question, max_tokens=8, stream=True, seed=1)
    pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces)


def test_a_port_in_use_is_a_sentence(demo):
    port = demo.client.base_url.port
    code, output = plinth("serve", DEMO / "service.yaml", "--home", demo.home, "--port", str(port))
    assert code == 2
    assert f"port {port} is in use; choose another with --port" in output
    assert "Traceback" not in output


def test_nothing_was_said_but_what_a_person_reads(demo):
    assert "Traceback" not in "".join(demo.lines)
