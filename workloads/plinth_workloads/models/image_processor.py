"""From a picture to the pixels that a model reads, and what is saved beside its weights so that others do the same."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from plinth_workloads.errors import UserError

_FILE = "preprocessor_config.json"


@dataclass(frozen=True, slots=True)
class ImageProcessor:
    """Squares of one size, values of a channel scaled to its mean and deviation.

    Attributes:
        size: Height and width in pixels.
        channels: 3 for colours, 1 for grey.
        patch_size: Height and width of the squares that are masked, in pixels.
    """

    size: int
    channels: int
    patch_size: int
    mean: float = 0.5
    std: float = 0.5

    @property
    def num_patches(self) -> int:
        """How many patches an image has."""
        return (self.size // self.patch_size) ** 2

    def read(self, file: IO[bytes]) -> npt.NDArray[np.uint8]:
        """The pixels of a picture, [channels, size, size].

        Raises:
            OSError: It does not decode.
        """
        from PIL import Image

        with Image.open(file) as picture:
            scaled = picture.convert("L" if self.channels == 1 else "RGB").resize((self.size, self.size))
        pixels = np.asarray(scaled, np.uint8).reshape(self.size, self.size, self.channels)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def normalized(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Pixels from 0 to 255 as what the model reads."""
        return ((pixels / 255 - self.mean) / self.std).astype(np.float32)

    def save_pretrained(self, folder: Path) -> None:
        """Write what transformers' image processors read."""
        folder.mkdir(parents=True, exist_ok=True)
        described = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": self.size, "width": self.size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [self.mean] * self.channels,
            "image_std": [self.std] * self.channels,
        }
        (folder / _FILE).write_text(json.dumps(described, indent=2))


def image_processor(architecture: str | None, given: Mapping[str, Any], base_folder: Path | None) -> ImageProcessor:
    """The image processor of a model that is new, or in a folder.

    Raises:
        UserError: InvalidSpec for a model that reads no square images in patches.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if base_folder is not None:
        described = json.loads((base_folder / "config.json").read_text())
        architecture = str(described["model_type"])
    else:
        described = dict(given)
    known = AutoConfig.for_model(architecture).to_dict() if architecture in CONFIG_MAPPING else {}
    sizes = {name: described.get(name, known.get(name)) for name in ("image_size", "num_channels", "patch_size")}
    if not all(isinstance(size, int) for size in sizes.values()):
        raise UserError(
            "InvalidSpec",
            f"spec.model.architecture: {architecture} reads no square images in patches; use vit_mae",
        )
    if sizes["num_channels"] not in (1, 3) or sizes["image_size"] % sizes["patch_size"]:
        raise UserError(
            "InvalidSpec",
            "spec.model.config: num_channels must be 1 or 3, and patch_size must divide image_size; they are "
            f"{sizes['num_channels']}, {sizes['patch_size']} and {sizes['image_size']}",
        )
    return ImageProcessor(sizes["image_size"], sizes["num_channels"], sizes["patch_size"], **_scale(base_folder))


def _scale(base_folder: Path | None) -> dict[str, float]:
    """Mean and deviation that a model was trained with, where its folder says them; its channels' averages."""
    file = base_folder / _FILE if base_folder is not None else None
    if file is None or not file.exists():
        return {}
    saved = json.loads(file.read_text())
    return {"mean": float(np.mean(saved["image_mean"])), "std": float(np.mean(saved["image_std"]))}
