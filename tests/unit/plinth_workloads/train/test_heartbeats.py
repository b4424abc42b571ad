"""Whom the others wait for, from what every worker has said."""

import faulthandler
import threading
from dataclasses import replace

import pytest

from plinth_workloads.errors import UserError
from plinth_workloads.train.heartbeats import Heartbeat, HeartbeatFolder, innermost_frame, stuck_failure


def beat(rank, *, marks=10, at="torch.distributed.distributed_c10d:2974 all_reduce", waits=True, **changes):
    said = Heartbeat(rank, f"host-{rank}", 100 + rank, 1, f"/work/watchdog/rank-{rank}.stacks", marks=marks, step=3)
    return replace(said, stuck_at=at, waits=waits, doing="agreeing with the others", **changes)


def test_the_worker_that_is_behind_is_the_one():
    behind = beat(1, marks=9, at="my.data:12 read", waits=False)
    failure = stuck_failure("NoProgress", 900, [beat(0), behind, beat(2)], 3)
    assert failure.reason == "NoProgress"
    assert failure.message == (
        "nothing has moved for 900 s (spec.watchdog.noProgressSeconds): rank 1 of 3 (host host-1, process 101) is "
        "agreeing with the others in step 3, at my.data:12 read; the stacks of its threads are in "
        "/work/watchdog/rank-1.stacks; meanwhile rank 0 of 3 (host host-0, process 100) is agreeing with the others in "
        "step 3, at torch.distributed.distributed_c10d:2974 all_reduce"
    )


@pytest.mark.parametrize(
    ("beats", "named"),
    [
        pytest.param([beat(0), beat(1, waits=False, at="a:1 b")], 1, id="of two as far, the one that does not wait"),
        pytest.param([beat(0), beat(1, waits=False, at="")], 1, id="of two as far, the one that says nothing"),
        pytest.param([beat(0, marks=9), beat(1, waits=False)], 0, id="the one behind, though it waits"),
    ],
)
def test_between_two(beats, named):
    message = stuck_failure("NoProgress", 900, beats, 2).message
    assert message.split("(spec.watchdog.noProgressSeconds): ")[1].startswith(f"rank {named} of 2")


def test_where_nobody_is_behind_that_is_said():
    message = stuck_failure("NoProgress", 900, [beat(0), beat(1)], 2).message
    assert "and no worker is behind the others: rank 0 of 2" in message


def test_a_start_that_takes_too_long_says_so_and_who_is_missing():
    failure = stuck_failure("StartupTimeout", 60, [beat(0)], 2)
    assert failure.reason == "StartupTimeout"
    assert failure.message == (
        "the first step was not done 60 s after the start (spec.watchdog.startupSeconds): rank 1 of 2 has "
        "not said anything yet"
    )


def test_a_process_that_does_not_answer_is_told_as_that():
    assert "and its process does not answer" in stuck_failure("NoProgress", 9, [beat(0), beat(1, at="")], 2).message


def wait_in_a_function(entered, leave):
    entered.set()
    leave.wait(30)


def test_the_stack_that_faulthandler_writes_is_understood(tmp_path):
    entered, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=wait_in_a_function, args=(entered, leave))
    thread.start()
    assert entered.wait(10)
    with (tmp_path / "stacks").open("w") as file:
        faulthandler.dump_traceback(file, all_threads=True)
    leave.set()
    thread.join()
    at, waits = innermost_frame(tmp_path / "stacks", thread.ident)
    assert at.startswith("threading:")
    assert not waits
    assert "in wait_in_a_function" in (tmp_path / "stacks").read_text()
    assert innermost_frame(tmp_path / "stacks", 1) == ("", False)
    assert innermost_frame(tmp_path / "none", 1) == ("", False)


def test_a_stack_below_a_collective_waits(tmp_path):
    (tmp_path / "stacks").write_text(
        "Timeout (0:00:02)!\n"
        "Thread 0x00000000000000ff (most recent call first):\n"
        '  File "/lib/torch/distributed/distributed_c10d.py", line 2974 in all_reduce\n'
        '  File "/app/parallel.py", line 51 in sum\n'
        "\n"
        "Thread 0x0000000000000100 (most recent call first):\n"
        '  File "/app/other.py", line 1 in other\n'
    )
    assert innermost_frame(tmp_path / "stacks", 255) == ("distributed_c10d:2974 all_reduce", True)
    assert innermost_frame(tmp_path / "stacks", 256) == ("other:1 other", False)


def test_what_is_said_is_read_also_of_a_worker_that_could_not_say_where_it_is(tmp_path):
    folder = HeartbeatFolder(tmp_path)
    spoke = beat(0)
    silent = replace(beat(1, at=""), thread=255, waits=False)
    folder.write(spoke)
    folder.write(silent)
    (folder.path / "rank-2.json").write_text('{"rank": 2')
    assert folder.read() == [spoke, silent]
    assert folder.dumped() == set()
    folder.stack(1).write_text('Timeout!\nThread 0x00000000000000ff (most\n  File "/app/c.py", line 9 in spin\n')
    assert folder.read() == [spoke, replace(silent, stuck_at="c:9 spin")]
    assert folder.dumped() == {1}


def test_what_ended_an_attempt_is_kept_until_the_next(tmp_path):
    folder = HeartbeatFolder(tmp_path)
    assert folder.told() is None
    folder.tell(UserError("NoProgress", "rank 1"))
    told = HeartbeatFolder(tmp_path).told()
    assert (told.reason, told.message) == ("NoProgress", "rank 1")
    folder.clear()
    assert folder.told() is None
