"""What the platform costs a training: two workers that the operator started, against torchrun in one pod of their size.

On the test node (root, Linux), with the chart installed. Both train the same run document on the same volume and record
it in the same MLflow: one as a PretrainJob, two worker pods under Ray Train with head and submitter beside them; the
other as `torchrun --nproc-per-node=2` in one pod with the image, environment and volumes of a worker and twice its
resources. They take turns, the first of a pair changes. What counts is tokens a second between two steps of the
progress file that each wrote; starting up does not.

    PYTHONPATH=operator:tests python benchmarks/platform_cost.py [--pairs 5] [--steps 100]
"""

import argparse
import json
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from cluster.control_plane import wait_until
from cluster.e2e import run_where_a_node_can_be
from cluster.node import Node
from plinth_operator.constants import VOLUME_ROOT
from plinth_operator.plan.paths import RUN_FOLDER, RUN_KEY, RUN_PATH
from plinth_release import Release
from plinth_workloads.train.progress import read_progress
from record import REPOSITORY, spread, write_record
from small_job import KIND, SmallJob, add_storage, small_job
from teams import Document, Team

WARM_UP_STEPS = 20
WORKERS = 2
START_SECONDS = 420.0
STEP_SECONDS = 5.0
"""A bound for waiting, not a figure."""


def main() -> int:
    """Prepare a node out here, measure in its sandbox."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help=f"of one run; the first {WARM_UP_STEPS} do not count")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.inside:
        # What pods have mounted goes away with the sandbox, and only then can the folder.
        with tempfile.TemporaryDirectory(prefix="platform-cost-") as folder:
            script = str(Path(__file__).resolve())
            return run_where_a_node_can_be([sys.executable, script, *sys.argv[1:], f"--inside={folder}"])
    with Node(arguments.inside / "node") as node:
        release = Release(node, arguments.inside / "volumes")
        release.install()
        measure(release.team(f"team-{secrets.token_hex(2)}"), arguments.pairs, arguments.steps)
    return 0


def measure(team: Team, num_pairs: int, num_steps: int) -> None:
    """Run the pairs, print them and write the record."""
    checkpoints = add_storage(team)
    pairs: list[dict[str, float]] = []
    for index in range(num_pairs):
        found: dict[str, float] = {}
        order = ("plinth", "torchrun") if index % 2 == 0 else ("torchrun", "plinth")
        for who in order:
            run = run_job if who == "plinth" else run_torchrun
            found[who] = run(team, checkpoints, f"{who}-{index}", num_steps)
        pairs.append(found)
        tell(f"pair {index + 1} of {num_pairs}: {found['plinth']:.0f} and {found['torchrun']:.0f} tokens/s")
    costs = [1 - pair["plinth"] / pair["torchrun"] for pair in pairs]
    settings = {
        "pairs": num_pairs,
        "steps": num_steps,
        "warm_up_steps": WARM_UP_STEPS,
        "workers": WORKERS,
        **{block: document(num_steps, "x")["spec"][block] for block in ("model", "training", "compute")},
    }
    figures = {
        "plinth_tokens_per_second": spread([pair["plinth"] for pair in pairs], 1),
        "torchrun_tokens_per_second": spread([pair["torchrun"] for pair in pairs], 1),
        "cost_of_the_platform": spread(costs, 4),
        "pairs": [{who: round(value, 1) for who, value in pair.items()} for pair in pairs],
    }
    path = write_record(
        "platform_cost",
        torch.device("cpu"),
        settings,
        figures,
        packages=("torch", "transformers", "ray", "mlflow"),
        has_own_load=True,
    )
    tell(f"the platform costs {statistics.median(costs):.1%} of the tokens a second (median of {num_pairs} pairs)")
    tell(f"kept in {path.relative_to(REPOSITORY)}")


def document(num_steps: int, name: str) -> Document:
    """The job: nothing is evaluated, and nothing saved before the last step."""
    job = small_job(name)
    training = {**job["spec"]["training"], "steps": num_steps}
    checkpoint = {**job["spec"]["checkpoint"], "everySteps": num_steps}
    return {**job, "spec": {**job["spec"], "training": training, "checkpoint": checkpoint}}


def run_job(team: Team, checkpoints: Path, name: str, num_steps: int) -> float:
    """Train as a PretrainJob; tokens a second."""
    job = SmallJob(team, checkpoints, document(num_steps, name))
    team.wait_phase(KIND, name, "Succeeded", START_SECONDS + num_steps * STEP_SECONDS)
    wait_until(lambda: not team.pods(name), 300, f"the end of the pods of {name}")
    return tokens_per_second(job.events())


def run_torchrun(team: Team, checkpoints: Path, name: str, num_steps: int) -> float:
    """Train the same document under torchrun in one pod; tokens a second.

    The document and the pod are those that the operator renders for a job that is taken away before it starts.
    """
    template, run = rendered(team, document(num_steps, name))
    work = f"{name}/.work/torchrun"
    run |= {"uid": f"torchrun-{name}", "workDir": f"{VOLUME_ROOT}/checkpoints/{work}"}
    run["checkpoint"]["uri"] = f"file://{VOLUME_ROOT}/checkpoints/{name}/torchrun"
    run["tracking"]["runId"] = None
    team.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {RUN_KEY: json.dumps(run)}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": torchrun_pod(template["spec"], name)},
    )

    def phase() -> str | None:
        found: str = team.get("pod", name)["status"].get("phase", "")
        return found if found in ("Succeeded", "Failed") else None

    ended = wait_until(phase, START_SECONDS + num_steps * STEP_SECONDS, f"the end of pod {name}")
    if ended == "Failed":
        raise RuntimeError(f"pod {name} failed:\n{team.kubectl('logs', name, '--tail=40', check=False)}")
    team.kubectl("delete", "pod", name)
    return tokens_per_second([event for event, _ in read_progress(checkpoints / work)])


def rendered(team: Team, job: Document) -> tuple[Document, Document]:
    """The worker's pod template and the run document that the operator makes of a job."""
    name = job["metadata"]["name"]
    team.apply(job)
    selector = f"plinth.dev/name={name}"
    (rayjob,) = wait_until(lambda: team.items("rayjobs", selector), 60, f"the RayJob of {name}")
    (config_map,) = team.items("configmaps", selector)
    team.kubectl("delete", KIND, name)
    wait_until(lambda: not team.items("pods", selector), 300, f"the end of the pods of {name}")
    template: Document = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]
    return template, json.loads(config_map["data"][RUN_KEY])


def torchrun_pod(worker: Document, config_map: str) -> Document:
    """One pod of the size of all workers, in which torchrun starts them."""
    (container,) = worker["containers"]
    resources = {
        bound: {resource: times(amount, WORKERS) for resource, amount in amounts.items()}
        for bound, amounts in container["resources"].items()
    }
    command = ["torchrun", "--standalone", f"--nproc-per-node={WORKERS}", "-m", "plinth_workloads.train", RUN_PATH]
    kept = {key: value for key, value in container.items() if key != "lifecycle"}
    volumes = [
        {**volume, "configMap": {**volume["configMap"], "name": config_map}} if "configMap" in volume else volume
        for volume in worker["volumes"]
    ]
    assert any(mount["mountPath"] == RUN_FOLDER for mount in container["volumeMounts"])
    return {**worker, "containers": [{**kept, "command": command, "resources": resources}], "volumes": volumes}


def times(amount: str, factor: int) -> str:
    """A quantity of a pod, several times."""
    digits = "".join(character for character in amount if character.isdigit())
    return f"{int(digits) * factor}{amount.removeprefix(digits)}"


def tokens_per_second(events: list[dict[str, Any]]) -> float:
    """From the end of the last step that does not count to the end of the last one."""
    steps = {event["step"]: event for event in events if event["event"] == "step"}
    first, last = steps[WARM_UP_STEPS], steps[max(steps)]
    return float((last["tokens"] - first["tokens"]) / (last["time"] - first["time"]))


def tell(text: str) -> None:
    """A line of progress."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
