"""Quantities as Kubernetes writes them back.

KubeRay reads and writes whole objects, and a quantity that comes back in other words (1024Mi as 1Gi) would look like a
hand edit of a field that we set.
"""

from decimal import ROUND_CEILING, Decimal

_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}
_DECIMAL = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}


def canonical_quantity(quantity: int | str) -> str:
    """The canonical form: no fraction, and the largest suffix that allows it; binary suffixes stay binary.

    Less than a thousandth is rounded up to one, as the resources of pods are.

    https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
    """
    text = str(quantity)
    number = text.rstrip("kKMGTPim")
    suffix = text[len(number) :]
    value = Decimal(number) * ({**_BINARY, **_DECIMAL}.get(suffix, 1))
    if suffix == "m":
        value /= 1000
    if suffix in _BINARY and value >= 1024 and value == int(value):
        return _with_suffix(int(value), _BINARY)
    milli = int((value * 1000).to_integral_value(rounding=ROUND_CEILING))
    return f"{milli}m" if milli % 1000 else _with_suffix(milli // 1000, _DECIMAL)


def _with_suffix(value: int, factors: dict[str, int]) -> str:
    fitting = [(factor, suffix) for suffix, factor in factors.items() if value and value % factor == 0]
    factor, suffix = max(fitting, default=(1, ""))
    return f"{value // factor}{suffix}"
