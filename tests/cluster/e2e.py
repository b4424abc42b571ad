"""`python -m cluster.e2e ARGUMENTS...`: everything that a node needs made, then pytest in a sandbox of its own.

What is made (Debian's packages, binaries, images) is made out here, where there is a network, and kept; the first time
takes half an hour on two cores. Where the machine cannot have a node nothing runs: an error where `CI` is set, a
sentence where it is not.
"""

import os
import sys

from cluster.build import CONTROL_PLANE, NODE, QUEUES, ensure_assets, tell
from cluster.images import held_images
from cluster.node import IMAGES
from cluster.packages import PackagesMissing, ensure_packages
from cluster.sandbox import run, why_not

QUEUE_FLAG = "--with-kueue"


def main(arguments: list[str]) -> int:
    """Run pytest with these arguments; its exit code."""
    command = [sys.executable, "-m", "pytest", *(word for word in arguments if word != QUEUE_FLAG)]
    return run_where_a_node_can_be(command, with_kueue=QUEUE_FLAG in arguments)


def run_where_a_node_can_be(command: list[str], *, with_kueue: bool = False) -> int:
    """Prepare what a node needs and run a command in a sandbox; its exit code."""
    if reason := why_not():
        tell(f"no node on this machine, its tests are left out: {reason}")
        return 1 if os.environ.get("CI") else 0
    try:
        ensure_packages()
    except PackagesMissing as error:
        tell(str(error))
        return 1
    ensure_assets(CONTROL_PLANE + NODE + (QUEUES if with_kueue else ()))
    with held_images((*IMAGES, *(("kueue",) if with_kueue else ()))):
        return run(command)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
