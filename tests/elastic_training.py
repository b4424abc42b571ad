"""An elastic run on a Ray cluster of several nodes, all on this machine: a node joins, and one is lost.

`python tests/elastic_training.py RUN_JSON` begins with two nodes of one worker each, adds a third once they train,
kills that one once three train, and asks the two that are left to stop.
"""

import os
import sys
import threading
import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from plinth_api.run import TrainRun
from plinth_workloads.train.elastic import Pace
from plinth_workloads.train.progress import STOP_FILE, read_progress
from plinth_workloads.train.worker import join_ray, train_with_ray

PACE = Pace(look=1.0, settle=15.0, between=1.0, wait=60.0)
_OBJECT_STORE_BYTES = 80 * 1024 * 1024
_LONGEST_SECONDS = 180.0


def main() -> None:
    run = TrainRun.model_validate_json(Path(sys.argv[1]).read_text())
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    cluster: Any = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        _add_node(cluster)
    os.environ["RAY_ADDRESS"] = cluster.address
    join_ray(run)
    asked = threading.Event()
    # The nodes are changed in this thread: Ray starts none in another.
    with ThreadPoolExecutor(max_workers=1) as pool:
        trained = pool.submit(train_with_ray, run, asked, PACE)
        try:
            _change(run, cluster, trained)
        except Exception:
            traceback.print_exc()
            cluster.shutdown()
            os._exit(1)
        asked.set()
        (Path(run.work_dir) / STOP_FILE).touch()
        trained.result()
    cluster.shutdown()


def _add_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=_OBJECT_STORE_BYTES)


def _change(run: TrainRun, cluster: Any, trained: Future[None]) -> None:
    _wait_until_trained(run, [2], trained)
    third = _add_node(cluster)
    _wait_until_trained(run, [2, 3], trained)
    cluster.remove_node(third, allow_graceful=False)
    _wait_until_trained(run, [2, 3, 2], trained)


def _wait_until_trained(run: TrainRun, counts: list[int], trained: Future[None]) -> None:
    """Until there were sessions of so many workers, one after the other, and the last has saved."""
    deadline = time.monotonic() + _LONGEST_SECONDS
    while time.monotonic() < deadline:
        events = [event for event, _ in read_progress(Path(run.work_dir))]
        starts = [index for index, event in enumerate(events) if event["event"] == "workers"]
        saved = bool(starts) and any(event["event"] == "checkpoint" for event in events[starts[-1] :])
        if [events[start]["count"] for start in starts] == counts and saved:
            return
        if trained.done():
            trained.result()
            raise RuntimeError(f"the run is over after sessions of {[events[start]['count'] for start in starts]}")
        time.sleep(0.1)
    raise TimeoutError(f"no sessions of {counts} workers in {_LONGEST_SECONDS:.0f} s")


if __name__ == "__main__":
    main()
