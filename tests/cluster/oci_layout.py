"""OCI layouts without the layers that the receiver has: a folder as a tool writes it, an archive to import.

Such a layer is a hole of its size in the folder, so that whoever writes the folder finds it there, and is left out of
the archive. That holds because layers are not compressed: their digests follow from their content alone.
"""

import json
import tarfile
from pathlib import Path
from typing import IO

NAME_ANNOTATION = "io.containerd.image.name"

Layers = dict[str, int]
"""Sizes in bytes by digest."""


def prepare_layout(layout: Path, known: Layers) -> None:
    """Make the folder, with holes in place of the layers that need not be written."""
    for digest, size in known.items():
        hole = blob(layout, digest)
        hole.parent.mkdir(parents=True, exist_ok=True)
        with hole.open("wb") as handle:
            handle.truncate(size)


def image_layers(layout: Path) -> Layers:
    """The layers of the one image in the layout."""
    (manifest,) = json.loads((layout / "index.json").read_text())["manifests"]
    layers = json.loads(blob(layout, manifest["digest"]).read_text())["layers"]
    return {layer["digest"]: layer["size"] for layer in layers}


def write_archive(layout: Path, reference: str, known: Layers, stream: IO[bytes]) -> None:
    """Write the layout as a tar archive, its image named, without known layers; a file that is written is gone."""
    index = json.loads((layout / "index.json").read_text())
    for manifest in index["manifests"]:
        manifest["annotations"] = {NAME_ANNOTATION: reference}
    (layout / "index.json").write_text(json.dumps(index))
    holes = {blob(layout, digest) for digest in known}
    with tarfile.open(fileobj=stream, mode="w|") as archive:
        for path in sorted(path for path in layout.rglob("*") if path.is_file()):
            if path not in holes:
                archive.add(path, arcname=str(path.relative_to(layout)))
            # As it goes, or a large image would be on the disk once more.
            path.unlink()


def blob(layout: Path, digest: str) -> Path:
    """Where the layout has what has a digest."""
    algorithm, _, value = digest.partition(":")
    return layout / "blobs" / algorithm / value
