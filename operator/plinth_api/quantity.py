"""Kubernetes resource quantities as numbers."""

import math

_FACTORS = {
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
    "Pi": 2.0**50,
}


def parse_quantity(quantity: int | str) -> float:
    """The number that a quantity stands for: 0.5 for "500m", 1073741824 for "1Gi"."""
    text = str(quantity)
    number = text.rstrip("".join(set("".join(_FACTORS))))
    return float(number) * _FACTORS.get(text[len(number) :], 1.0)


def whole_cpus(cpus: float) -> int:
    """The CPUs that a worker's pod offers to Ray, and that its one process asks of Ray.

    Ray counts the CPUs of a node in whole ones. Who asked for less than is offered would leave room for a second
    process in a pod that is made for one.
    """
    return max(1, math.ceil(cpus))


def told_bytes(count: int) -> str:
    """A number of bytes for people: 1.2 GiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
