"""Debian's packages that tests need: what is missing is installed, which takes root.

`PYTHONPATH=tests python -m cluster.packages [NAME ...]` does it; without names, what a test node and its images need.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from cluster.build import tell

PACKAGES: Mapping[str, str] = {
    "buildah": "/usr/bin/buildah",
    # Not /bin/busybox: that may be the other package's, which needs a C library.
    "busybox-static": "/var/lib/dpkg/info/busybox-static.list",
    "conntrack": "/usr/sbin/conntrack",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "debootstrap": "/usr/sbin/debootstrap",
    "iproute2": "/sbin/ip",
    "iptables": "/usr/sbin/iptables",
    "libseccomp-dev": "/usr/include/seccomp.h",
    "nftables": "/usr/sbin/nft",
    "pkg-config": "/usr/bin/pkg-config",
    "skopeo": "/usr/bin/skopeo",
}
"""What a node and its images need, each with a file of it that tells whether it is installed."""

BROWSER: Mapping[str, str] = {"chromium": "/usr/bin/chromium"}
"""What tests of pages need, as `PACKAGES` has it: 125 MB to fetch, 415 MB on disk with what it depends on."""


class PackagesMissing(RuntimeError):
    """Something has to be installed and cannot be from here; the message says what, and by whom."""


def missing_packages(names: Iterable[str] = PACKAGES, root: Path = Path("/")) -> list[str]:
    """Those whose file is not there."""
    return [name for name in names if not (root / _file_of(name).lstrip("/")).exists()]


def _file_of(name: str) -> str:
    return PACKAGES.get(name) or BROWSER[name]


def ensure_packages(names: Iterable[str] = PACKAGES) -> None:
    """Install what is missing; `PackagesMissing` where that takes another user or another system."""
    missing = missing_packages(names)
    if not missing:
        return
    if problem := why_not(missing):
        raise PackagesMissing(f"missing on this machine: {', '.join(missing)}; {problem}")
    tell(f"installing {', '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
        command = ["apt-get", "--quiet", *arguments]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            raise PackagesMissing(f"{' '.join(command)} failed:\n{answer.stdout[-2000:]}{answer.stderr[-2000:]}")
    if missing := missing_packages(missing):
        files = ", ".join(map(_file_of, missing))
        raise PackagesMissing(f"{', '.join(missing)} was installed, but {files} is not there: is this Debian 12?")


def why_not(names: Iterable[str]) -> str:
    """What keeps this process from installing these; empty when nothing does."""
    if shutil.which("apt-get") is None:
        return "they are packages of Debian, and apt-get is not here: run this on Debian 12"
    if os.geteuid() != 0:
        return f"run `sudo env PYTHONPATH=tests python3 -m cluster.packages {' '.join(names)}`, or this command as root"
    return ""


if __name__ == "__main__":
    try:
        ensure_packages(sys.argv[1:] or PACKAGES)
    except PackagesMissing as error:
        sys.exit(f"cluster: {error}")
