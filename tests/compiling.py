"""Trains two steps of a compiled run, and prints what the compiler counted.

`python tests/compiling.py RUN_JSON`
"""

import json
import sys
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from plinth_api.run import TrainRun
from training import open_alone


def main() -> None:
    torch.set_num_threads(1)
    run = TrainRun.model_validate_json(Path(sys.argv[1]).read_text())
    session, losses = open_alone(run)
    for _ in range(2):
        session.loop.train_step()
    counted = {
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": sum(counters["graph_break"].values()),
        "cold": counters["inductor"]["fxgraph_cache_miss"],
        "warm": counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"],
        "losses": losses.by_step,
    }
    sys.stdout.write(json.dumps(counted))


if __name__ == "__main__":
    main()
