"""`plinth run` on real local Ray workers: killed, interrupted, resumed, refused."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from commands import plinth, start_plinth, write_yaml
from makers import pretrain_document
from plinth_api.resolve import resolve_train_run
from plinth_workloads.local import Home
from plinth_workloads.manifests import load_manifests
from plinth_workloads.train.heartbeats import HeartbeatFolder
from plinth_workloads.train.progress import read_progress
from servers import free_port
from torch_runs import ENVIRONMENT, train
from training import write_corpus

# Ray starts several times in one test: beside a busy neighbour that takes longer than the limit of the others.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def job_file(folder, **spec):
    """A job of two workers whose YAML is the same wherever it runs: its corpus is on a claim."""
    write_corpus(folder / "home" / "volumes" / "corpora" / "corpus.jsonl")
    data = {"train": [{"uri": "pvc://corpora/corpus.jsonl"}]}
    # Small enough to be quick, large enough that a step takes a while: the signals must find it at work.
    model = {"config": {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 256}}
    training = {"steps": 60, "sequenceLength": 128}
    changes = {"data": data, "model": model, "compute": {"workers": 2}, "training": training}
    changes |= {"checkpoint": {"uri": "pvc://checkpoints/tiny", "everySteps": 5}, "evaluation": {"everySteps": 30}}
    return write_yaml(folder / "job.yaml", pretrain_document(**{**changes, **spec}))


def events_of(home):
    (folder,) = (home / "runs").iterdir()
    return [event for event, _ in read_progress(folder)]


def final_loss(home):
    return [event["loss"] for event in events_of(home) if event["event"] == "step" and event["step"] == 60][-1]


def wait_for_step(home, step, process):
    """Wait until some step from `step` on is done."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        runs = list((home / "runs").glob("*")) if (home / "runs").exists() else []
        if runs and any(e["event"] == "step" and e["step"] >= step for e, _ in read_progress(runs[0])):
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} never came: {process.communicate(timeout=5)[0]}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same run under torchrun, from beginning to end: the loss of its last step."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (manifest,) = load_manifests([job_file(folder)])
    run = resolve_train_run(manifest.resource, Home(folder / "home").settings(manifest.resource), {})
    train(run, folder, processes=2)
    return final_loss(folder / "home")


def test_killed_and_interrupted_it_ends_as_if_nothing_had_happened(undisturbed, tmp_path):
    home = tmp_path / "home"
    file = job_file(tmp_path)
    killed = start_plinth("run", file, "--home", home)
    wait_for_step(home, 8, killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()

    interrupted = start_plinth("run", file, "--home", home)
    wait_for_step(home, 30, interrupted)
    code, output = plinth("run", file, "--home", home)
    assert code == 2
    assert "tiny is running already" in output
    interrupted.send_signal(signal.SIGINT)
    output, _ = interrupted.communicate(timeout=120)
    assert interrupted.returncode == 1
    assert "going on from step" in output
    assert "the same command goes on from there" in output
    stopped = [event["step"] for event in events_of(home) if event["event"] == "stopped"]
    saved = [event["step"] for event in events_of(home) if event["event"] == "checkpoint"]
    assert stopped == saved[-1:], "what was done when it was interrupted is saved"

    assert list((home / "runs").glob("*/stop")), "the request to stop is there yet: the next attempt must not heed it"
    # The end under torchrun: it starts faster than Ray, and the document must give the same run.
    finish_under_torchrun(home)
    (started,) = [event["step"] for event in events_of(home) if event["event"] == "started"][2:]
    assert started == stopped[0]
    assert final_loss(home) == undisturbed
    assert len({event["runId"] for event in events_of(home) if event["event"] == "run"}) == 1
    (run,) = (home / "runs").iterdir()
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")

    before = len(events_of(home))
    code, output = plinth("run", file, "--home", home)
    assert code == 0, output
    assert "is finished already; --again runs it once more" in output
    for told in ("succeeded", "60/60", "models:/tiny/1", "MLflow http://127.0.0.1:5000/#/experiments/"):
        assert told in output
    assert len(events_of(home)) == before


def finish_under_torchrun(home):
    """Run the job's document to its end by the workload's own entry point, without Ray."""
    (document,) = (home / "runs").glob("*/run.json")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    entry = ["-m", "plinth_workloads.train", str(document)]
    done = subprocess.run([*launcher, *entry], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_file_is_a_sentence(tmp_path):
    file = job_file(tmp_path, data={"train": [{"uri": "pvc://corpora/missing.jsonl"}]}, compute={"workers": 1})
    # With a rank the workload is a worker itself, which starts faster than Ray; the unit test_worker.py has Ray's.
    code, output = plinth("run", file, "--home", tmp_path / "home", RANK="0")
    assert code == 1
    sentence = f"file://{tmp_path}/home/volumes/corpora/missing.jsonl matches no file"
    assert f"DatasetNotFound: {sentence}" in output
    assert "Traceback" not in output
    (log,) = (tmp_path / "home" / "runs").glob("*/train.log")
    failure = json.loads(log.read_text().splitlines()[-1])
    assert (failure["plinth"], failure["reason"]) == ("failure", "DatasetNotFound")
    assert failure["message"].startswith(sentence)


def test_an_unreachable_mlflow_is_a_sentence(tmp_path):
    uri = f"http://127.0.0.1:{free_port()}"
    file = job_file(
        tmp_path, model={"architecture": None, "config": None, "tokenizer": None, "uri": "models:/m@champion"}
    )
    code, output = plinth("run", file, "--home", tmp_path / "home", MLFLOW_TRACKING_URI=uri)
    assert code == 1
    assert f"TrackingUnavailable: MLflow at {uri} cannot be reached" in output
    assert "Traceback" not in output


def test_an_alias_that_names_nothing_is_a_sentence(tmp_path):
    file = job_file(
        tmp_path, model={"architecture": None, "config": None, "tokenizer": None, "uri": "models:/m@champion"}
    )
    code, output = plinth("run", file, "--home", tmp_path / "home")
    assert code == 1
    assert "ModelNotFound: models:/m@champion names no registered model yet" in output
    assert not list(Path(tmp_path / "home").glob("runs/*/run.json"))


def test_a_worker_that_stands_still_ends_the_job_and_is_named(tmp_path):
    home, seconds = tmp_path / "home", 10
    file = job_file(tmp_path, watchdog={"noProgressSeconds": seconds})
    job = start_plinth("run", file, "--home", home)
    wait_for_step(home, 8, job)
    (work_dir,) = (home / "runs").iterdir()
    (worker,) = (beat for beat in HeartbeatFolder(work_dir).read() if beat.rank == 1)
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        output, _ = job.communicate(timeout=240)
    finally:
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
    assert job.returncode == 1
    assert f"NoProgress: nothing has moved for {seconds} s (spec.watchdog.noProgressSeconds): rank 1 of 2" in output
    assert "Traceback" not in output
    (failed,) = [event for event in events_of(home) if event["event"] == "failed"]
    assert failed["reason"] == "NoProgress"
