"""What one process has compiled, the next one finds; and our own operation is one that can be compiled."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from plinth_workloads.models.attention import document_attention
from torch_runs import ENVIRONMENT
from training import make_train_run, open_alone, write_run

pytestmark = pytest.mark.integration
SCRIPT = str(Path(__file__).parents[1] / "compiling.py")


def compiled_steps(run, folder):
    """Two steps in a process of its own; what the compiler counted there."""
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, SCRIPT, str(write_run(run, folder))],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_second_attempt_compiles_nothing_and_both_train_as_uncompiled(tmp_path):
    run = make_train_run(tmp_path, training={"compile": True})
    first, second = (compiled_steps(run, tmp_path) for _ in range(2))
    assert (first["graphs"], first["breaks"], first["warm"]) == (1, 0, 0)
    assert first["cold"] > 0
    assert (second["graphs"], second["breaks"], second["cold"]) == (1, 0, 0)
    assert second["warm"] > 0
    session, losses = open_alone(make_train_run(tmp_path / "eager"))
    for _ in range(2):
        session.loop.train_step()
    for counted in (first, second):
        assert list(counted["losses"].values()) == pytest.approx(list(losses.by_step.values()), abs=1e-4)


def test_the_operation_keeps_what_it_promises_to_autograd_and_the_compiler():
    inputs = [torch.randn(2, 4, 12, 8, requires_grad=True) for _ in range(3)]
    starts_BT = torch.zeros(2, 12, dtype=torch.uint8)
    starts_BT[:, 0] = starts_BT[1, 7] = 1
    torch.library.opcheck(document_attention, (*inputs, starts_BT, 0.5))
