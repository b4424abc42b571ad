import pytest
import yaml

from makers import pretrain_document
from plinth_workloads.manifests import InvalidManifest, load_manifests


def load_training(tmp_path, text):
    document = yaml.safe_dump(pretrain_document(training=None))
    (tmp_path / "job.yaml").write_text(document.replace("spec:\n", f"spec:\n  training: {text}\n"))
    (manifest,) = load_manifests([tmp_path / "job.yaml"])
    return manifest.resource.spec.training


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3e-4", 3e-4), ("1E-2", 1e-2), ("2.5e-05", 2.5e-5), ("0.001", 0.001), (".5", 0.5), ("1", 1.0)],
)
def test_a_number_is_read_as_kubectl_reads_it(tmp_path, text, expected):
    assert load_training(tmp_path, f"{{steps: 10, learningRate: {text}}}").learning_rate == expected


def test_a_quoted_number_is_a_string_and_refused(tmp_path):
    with pytest.raises(InvalidManifest, match=r'learningRate: must be a number, not "3e-4"'):
        load_training(tmp_path, "{steps: 10, learningRate: '3e-4'}")


def test_a_key_stands_once(tmp_path):
    with pytest.raises(
        InvalidManifest, match=r"job\.yaml: is not YAML: line \d+, column \d+: the key 'steps' stands twice"
    ):
        load_training(tmp_path, "{steps: 10, steps: 20}")


def test_several_documents_are_read_in_order(tmp_path):
    names = ["first", "second"]
    (tmp_path / "jobs.yaml").write_text("---\n".join(yaml.safe_dump(pretrain_document(name=name)) for name in names))
    assert [m.resource.metadata.name for m in load_manifests([tmp_path / "jobs.yaml"])] == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"# only a comment\n---\n", "is empty", id="only comments"),
        pytest.param(b"\xff\xfe\x00", "is not UTF-8 text|is not YAML", id="not text"),
        pytest.param(b"- a\n- b\n", "must hold an object, not list", id="a list"),
        pytest.param(b"a: [1,\n", "is not YAML: line 2", id="broken"),
    ],
)
def test_what_is_no_resource_is_a_sentence(tmp_path, content, message):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(InvalidManifest, match=message):
        load_manifests([tmp_path / "x.yaml"])
