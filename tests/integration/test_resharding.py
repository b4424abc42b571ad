"""Checkpoints of some number of workers go on with another, and survive workers that die while they are written.

Stated tolerance: weights and losses within 1e-5, each tensor of the optimizer within a thousandth of its largest value.
"""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from forks import FAULT_STEP, Phase, run_phases
from plinth_workloads.train.checkpoint import newest_checkpoint
from torch_runs import losses_of
from training import make_train_run, write_corpus, write_run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

STEPS = 9
SPEC = {
    "training": {"steps": STEPS, "microBatchSize": 2},
    "checkpoint": {"everySteps": 3, "keep": 3},
    "evaluation": {"everySteps": STEPS},
}
UP, DOWN = ((2, 3), (4, 6)), ((4, 0), (2, 3), (1, 6))
"""Numbers of workers, and the step at which they go on; on the way up, from a checkpoint of one process."""


def copies(workers):
    return {}


def shards(workers):
    return {"shard": workers}


def split_layers(workers):
    """Two workers for a layer, where there are two, and shards."""
    return {"tensor": 2, "shard": workers // 2} if workers > 1 else {}


CHAINS = {
    "copies up": (UP, copies),
    "shards up": (UP, shards),
    "copies down": (DOWN, copies),
    "shards down": (DOWN, shards),
    "split layers up": (UP, split_layers),
    "split layers down": (DOWN, split_layers),
}


def make_run(corpus, root, folder, workers, spread):
    """A run in `root`, its document in `folder`."""
    compute = {"workers": workers, "parallelism": spread(workers)}
    run = make_train_run(root, data={"train": [{"uri": f"file://{corpus}"}]}, compute=compute, **SPEC)
    write_run(run, folder)
    return run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    """A run of one process, never disturbed."""
    folder = tmp_path_factory.mktemp("alone")
    run = make_run(corpus, folder, folder, 1, copies)
    run_phases([Phase(str(folder), 1)], folder)
    return folder, run


@pytest.fixture(scope="module")
def chains(alone, corpus, tmp_path_factory):
    """The last run of each chain and the folders of its phases, by the chain's name."""
    root = tmp_path_factory.mktemp("chains")
    plan, runs = [], {}
    for chain, (phases, spread) in CHAINS.items():
        home = root / chain
        shutil.copytree(alone[0] / "work" / "cache", home / "work" / "cache")
        if phases is UP:
            shutil.copytree(alone[0] / "checkpoints", home / "checkpoints")
        folders = [home / f"{workers} workers" for workers, _ in phases]
        for folder, (workers, from_step) in zip(folders, phases, strict=True):
            run = make_run(corpus, home, folder, workers, spread)
            plan.append(Phase(str(folder), workers, from_step))
        runs[chain] = run, folders
    run_phases(plan, root)
    return runs


@pytest.mark.parametrize("chain", CHAINS)
def test_another_number_of_workers_goes_on_as_if_it_had_never_changed(chains, alone, chain):
    run, folders = chains[chain]
    assert [(folder / "outcome-0").read_text() for folder in folders] == ["finished"] * len(folders)
    losses, expected = losses_of(run), losses_of(alone[1])
    assert min(losses) == CHAINS[chain][0][0][1] + 1
    assert losses == pytest.approx({step: expected[step] for step in losses}, abs=1e-5)
    assert_as_alone(load_file(folders[-1] / "trained.safetensors"), alone)


def assert_as_alone(trained, alone):
    expected = load_file(alone[0] / "trained.safetensors")
    assert set(trained) == set(expected)
    for name, value in expected.items():
        tolerance = 1e-5 if name.startswith("model.") else 1e-3 * float(value.abs().max())
        torch.testing.assert_close(
            trained[name], value, rtol=0, atol=tolerance, msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize("chain", [chain for chain in CHAINS if chain.endswith(" up")])
def test_what_one_process_saved_two_have_bit_by_bit(chains, alone, chain):
    saved = load_file(alone[0] / "checkpoints" / "tiny-uid" / "step-00000003" / "shard-00001.safetensors")
    resumed = load_file(chains[chain][1][0] / "resumed.safetensors")
    assert set(resumed) == set(saved)
    assert all(torch.equal(resumed[name], value) for name, value in saved.items())


@pytest.fixture(scope="module")
def faults(corpus, alone, tmp_path_factory):
    """Runs of two workers whose second one has a fault while it saves; the first of them then goes on."""
    root = tmp_path_factory.mktemp("faults")
    runs = {}
    for fault in ("killed", "full disk"):
        shutil.copytree(alone[0] / "work" / "cache", root / fault / "work" / "cache")
        runs[fault] = make_run(corpus, root / fault, root / fault, 2, shards)
        run_phases([Phase(str(root / fault), 2, fault=fault)], root)
    return root, runs


def checkpoints_of(run):
    return Path(run.checkpoint.uri.removeprefix("file://"))


def test_a_worker_killed_while_it_saves_leaves_the_checkpoint_before(faults, alone):
    root, runs = faults
    folder, run = root / "killed", runs["killed"]
    assert not (folder / "outcome-1").exists(), "it was killed"
    assert (folder / "outcome-0").read_text().startswith("RuntimeError: "), "the other one does not wait for ever"
    assert (checkpoints_of(run) / f"step-{FAULT_STEP:08d}.tmp" / "shard-00002.safetensors").read_bytes() == b"torn"
    assert newest_checkpoint(checkpoints_of(run)).step == FAULT_STEP - 3
    run_phases([Phase(str(folder), 2, from_step=STEPS)], root)
    assert_as_alone(load_file(folder / "trained.safetensors"), alone)


def test_a_save_that_fails_in_one_worker_is_told_by_all(faults):
    root, runs = faults
    folder, run = root / "full disk", runs["full disk"]
    told = {(folder / f"outcome-{rank}").read_text() for rank in (0, 1)}
    good = checkpoints_of(run) / "step-00000003"
    assert told == {
        f"CheckpointFailed: the checkpoint of step {FAULT_STEP} cannot be saved in {checkpoints_of(run)}: "
        "no space is left (No space left on device); free some, or point spec.checkpoint.uri elsewhere; "
        f"the last good one is {good}"
    }
    assert newest_checkpoint(checkpoints_of(run)).folder == good
    assert not list(checkpoints_of(run).glob("*.tmp"))
