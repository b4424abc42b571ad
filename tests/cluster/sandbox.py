"""A command in namespaces of its own, for `cluster.e2e`.

A node changes a machine: addresses, packet filters, mounts, processes that are nobody's children. In here it changes
only what goes away with the command: network, mounts and processes are its own, nothing outside can be reached but the
file system, and the kernel ends everything when the command ends, however it does. Control groups are the machine's;
those of the node are removed afterwards.

Run as a module this is the first process in there, and needs the rights that `why_not` looks for.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ADDRESS = "10.199.0.1"
"""Of the node, the API server and cluster DNS: nobody else's, and not loopback, which no pod reaches."""

SEARCH = "svc.cluster.local cluster.local"
CGROUP_VARIABLE = "PLINTH_SANDBOX_CGROUP"
CGROUPS = Path("/sys/fs/cgroup")
UNSHARE = ("unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc")
FOLDERS = ("/run", "/var/log")
"""Where container runtimes leave sockets, mounts and logs whatever they are told."""


def why_not() -> str | None:
    """What this machine lacks, in a sentence; None where a sandbox can be made."""
    if sys.platform != "linux":
        return "it needs Linux"
    if os.geteuid() != 0:
        return "it needs root, for namespaces, mounts and control groups"
    if not all(map(shutil.which, ("unshare", "mount", "ip"))):
        return "it needs unshare and mount of util-linux, and ip of iproute2"
    probe = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return f"namespaces cannot be made: {probe.stderr.strip()}" if probe.returncode else None


def run(command: list[str]) -> int:
    """Run a command in new namespaces and give its exit code, with nothing left of it."""
    with tempfile.TemporaryDirectory(prefix="plinth-sandbox-") as folder:
        cgroup = Path(folder).name
        inside = [sys.executable, "-m", "cluster.sandbox", *command]
        try:
            process = subprocess.Popen([*UNSHARE, *inside], env={**os.environ, CGROUP_VARIABLE: cgroup})
            # A terminal sends Ctrl-C to the command too, which ends in its own time.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, lambda *_: process.kill())
            return process.wait()
        finally:
            remove_cgroups(cgroup)


def enter(command: list[str]) -> int:
    """As the first process of the namespaces: set them up, run the command, bury what it leaves behind."""
    mount("--make-rprivate", "/")
    for folder in FOLDERS:
        mount("-t", "tmpfs", "tmpfs", folder)
    Path("/run/lock").mkdir()
    # Names of the cluster resolve for the command as they do for pods; no other server could be reached.
    Path("/run/resolv.conf").write_text(f"nameserver {ADDRESS}\nsearch {SEARCH}\noptions ndots:5\n")
    mount("--bind", "/run/resolv.conf", str(Path("/etc/resolv.conf").resolve()))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    process = subprocess.Popen(command)
    while True:
        # Every process whose parent ended is a child of this one.
        pid, status = os.wait()
        if pid == process.pid:
            return os.waitstatus_to_exitcode(status) % 256


def mount(*arguments: str) -> None:
    """Run mount."""
    subprocess.run(["mount", *arguments], check=True)


def remove_cgroups(name: str, seconds: float = 10.0) -> None:
    """Remove the control groups of a node in every hierarchy, the innermost first, once their processes have ended."""
    deadline = time.monotonic() + seconds
    while roots := [*CGROUPS.glob(f"*/{name}"), *CGROUPS.glob(name)]:
        for root in roots:
            for folder, _, _ in os.walk(root, topdown=False):
                with suppress(OSError):
                    Path(folder).rmdir()
        if time.monotonic() > deadline:
            return
        time.sleep(0.1)


if __name__ == "__main__":
    raise SystemExit(enter(sys.argv[1:]))
