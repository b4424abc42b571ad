"""An archive has everything but the layers that its receiver has, and leaves nothing on the disk."""

import hashlib
import io
import json
import tarfile

import pytest

from cluster.oci_layout import blob, image_layers, prepare_layout, write_archive

LAYERS = (b"the layer with torch" * 1000, b"the code")
REFERENCE = "plinth.test/workloads:0123456789abcdef"


def put(layout, content):
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    path = blob(layout, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    # As skopeo does: what is there is taken for what it should be.
    if not path.exists():
        path.write_bytes(content)
    return {"digest": digest, "size": path.stat().st_size}


@pytest.fixture
def write(tmp_path):
    """Writes an image of both layers to a layout; what tells the layers, and an archive without known ones."""

    def written(known):
        layout = tmp_path / "layout"
        prepare_layout(layout, known)
        layers = [put(layout, content) for content in LAYERS]
        manifest = put(layout, json.dumps({"layers": layers}).encode())
        index = {"manifests": [{**manifest, "annotations": {"org.opencontainers.image.ref.name": "image"}}]}
        layout.mkdir(exist_ok=True)
        (layout / "index.json").write_text(json.dumps(index))
        found, stream = image_layers(layout), io.BytesIO()
        write_archive(layout, REFERENCE, known, stream)
        assert [path for path in layout.rglob("*") if path.is_file()] == []
        stream.seek(0)
        with tarfile.open(fileobj=stream) as archive:
            contents = {it.name: archive.extractfile(it).read() for it in archive}
        return found, contents

    return written


def blobs(contents):
    return {content for name, content in contents.items() if name.startswith("blobs/sha256/")}


def test_a_first_archive_has_every_layer_and_the_images_name(write):
    layers, contents = write({})
    assert set(LAYERS) < blobs(contents)
    assert list(layers.values()) == [len(content) for content in LAYERS]
    (manifest,) = json.loads(contents["index.json"])["manifests"]
    assert manifest["annotations"] == {"io.containerd.image.name": REFERENCE}


def test_an_archive_for_who_has_a_layer_lacks_that_one_only_and_its_manifest_is_the_same(write):
    layers, whole = write({})
    torch = next(iter(layers))
    again, thin = write({torch: layers[torch], "sha256:0000": 5})
    assert again == layers
    assert set(whole) - set(thin) == {f"blobs/{torch.replace(':', '/')}"}
    assert not set(thin) - set(whole)
    assert LAYERS[1] in blobs(thin)
    assert json.loads(thin["index.json"]) == json.loads(whole["index.json"])
