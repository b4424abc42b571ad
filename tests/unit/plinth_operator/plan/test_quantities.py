import pytest

from plinth_operator.plan.quantities import canonical_quantity


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (1, "1"),
        ("0", "0"),
        ("0Mi", "0"),
        ("500m", "500m"),
        ("1000m", "1"),
        ("1500m", "1500m"),
        ("0.5", "500m"),
        (".5", "500m"),
        ("1.0", "1"),
        ("1000", "1k"),
        ("1500", "1500"),
        ("1.5k", "1500"),
        ("1000k", "1M"),
        ("2000M", "2G"),
        ("1024Mi", "1Gi"),
        ("1536Mi", "1536Mi"),
        ("1.5Gi", "1536Mi"),
        (".5Gi", "512Mi"),
        ("96Gi", "96Gi"),
        ("0.5Ki", "512"),
        ("0.1Gi", "107374182400m"),
    ],
)
def test_a_quantity_is_written_as_kubernetes_writes_it_back(written: int | str, read: str):
    """Seen from resource.ParseQuantity(written).String() of k8s.io/apimachinery 0.36."""
    assert canonical_quantity(written) == read


def test_less_than_a_thousandth_becomes_one():
    assert canonical_quantity("0.0001") == "1m"
