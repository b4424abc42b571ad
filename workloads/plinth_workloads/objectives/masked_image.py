"""Restore the masked patches of images: MAE.

Shapes: B images, C channels, H pixels of height, W of width, P patches, V values of a patch.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plinth_api.objectives import MaskedImage as Settings
from plinth_api.run import RunSource, TrainRun
from plinth_workloads.data.images import read_images
from plinth_workloads.data.loader import Batch, Draw
from plinth_workloads.data.packing import EpochPlan, PieceRows, Segment
from plinth_workloads.data.recipe import DataRecipe
from plinth_workloads.data.token_store import IntArray, TokenizedDocument, TokenStore
from plinth_workloads.errors import UserError
from plinth_workloads.models.image_processor import ImageProcessor, image_processor
from plinth_workloads.objectives.objective import Objective


class MaskedImage(Objective):
    """The objective of masked autoencoders (https://arxiv.org/abs/2111.06377)."""

    auto_class = "AutoModelForPreTraining"
    pipeline_tag = "image-feature-extraction"

    def __init__(self, run: TrainRun) -> None:
        super().__init__(run)
        self._mask_ratio = Settings.model_validate(run.objective_settings).mask_ratio

    def recipe(self) -> DataRecipe:
        """Images, whose documents are their pixels."""
        return _ImageRecipe(self.run, self._mask_ratio)

    def implied_config(self, tokenizer: Any) -> Mapping[str, Any]:
        """The model itself leaves the masked patches out."""
        return {"mask_ratio": self._mask_ratio}

    def check(self, model: Any, tokenizer: Any) -> None:
        """Refuse a model that does not restore patches."""
        if not hasattr(model, "patchify"):
            raise UserError(
                "InvalidSpec",
                f"spec.model.architecture: {model.config.model_type} does not restore masked patches; use vit_mae",
            )

    def loss(self, model: Any, tokenizer: Any) -> "MaskedImageLoss":
        """Squared error of the masked patches."""
        _number_patches(model)
        return MaskedImageLoss(model)

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """The loss: mean squared error of a normalized pixel of a masked patch."""
        return dict(means)


class MaskedImageLoss(nn.Module):
    """A masked autoencoder with the mean squared error of each masked patch, summed over them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values_BCHW: Tensor, noise_BP: Tensor, is_image_B: Tensor) -> Tensor:
        """The summed loss.

        Args:
            pixel_values_BCHW: Normalized pixels.
            noise_BP: The patches with the most noise are masked.
            is_image_B: False for padding, which counts for nothing.
        """
        output = self.model(pixel_values=pixel_values_BCHW, noise=noise_BP)
        target_BPV = self.model.patchify(pixel_values_BCHW)
        if self.model.config.norm_pix_loss:
            variance, mean = torch.var_mean(target_BPV, dim=-1, keepdim=True)
            target_BPV = (target_BPV - mean) / (variance + 1e-6).sqrt()
        error_BP = (output.logits.float() - target_BPV).square().mean(-1)
        return (error_BP * output.mask * is_image_B[:, None]).sum()


@torch.no_grad()
def _number_patches(model: Any) -> None:
    """Fill the fixed position embeddings where they are zero, so that patches are told apart.

    transformers 5 leaves them so in new models: it takes the embeddings for filled once their projection is, and sets
    the decoder's to zero.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(("position_embeddings", "decoder_pos_embed")) and not parameter.any():
            side = round((parameter.shape[1] - 1) ** 0.5)
            parameter[0, 1:] = patch_positions(side, parameter.shape[2])


def patch_positions(side: int, dimensions: int) -> Tensor:
    """Sines and cosines of column and row of each patch, [side * side, dimensions].

    As the weights of MAE have them: columns in the first half, frequencies from 1 down to 1/10000
    (https://arxiv.org/abs/2111.06377, appendix A.1).
    """
    frequencies = 10000.0 ** -(torch.arange(dimensions // 4) / (dimensions // 4))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in (columns, rows)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)


class _ImageRecipe(DataRecipe):
    """Images as documents of pixels, each of which is one of 256 tokens: split, shuffled and weighted like texts."""

    def __init__(self, run: TrainRun, mask_ratio: float) -> None:
        super().__init__(run)
        self._mask_ratio = mask_ratio

    def processor(self, base_folder: Path | None, cache: Path) -> ImageProcessor:
        return image_processor(self.run.model.architecture, self.run.model.config, base_folder)

    def vocabulary_size(self, tokenizer: Any) -> int:
        return 256

    def documents(self, source: RunSource, tokenizer: Any, cache: Path) -> Iterator[TokenizedDocument]:
        for pixels in read_images(source, self.run.data.columns, tokenizer, cache / "datasets"):
            yield TokenizedDocument(pixels.ravel())

    def learns_something(self, document: TokenizedDocument) -> bool:
        return True

    def plan(self, documents: IntArray, store: TokenStore, *, seed: int) -> EpochPlan:
        return PieceRows(documents, store.lengths, max(1, int(store.lengths.max(initial=1))), seed=seed)

    def batcher(self, tokenizer: Any, store: TokenStore, documents: IntArray) -> "_ImageRows":
        return _ImageRows(self.run.training.seed, self._mask_ratio, tokenizer, store)


class _ImageRows:
    """Makes the inputs of `MaskedImageLoss`."""

    def __init__(self, seed: int, mask_ratio: float, processor: ImageProcessor, store: TokenStore) -> None:
        self._seed, self._processor, self._store = seed, processor, store
        # As the model counts them: what is kept is rounded down.
        self._num_masked = processor.num_patches - int(processor.num_patches * (1 - mask_ratio))

    def batch(self, rows: Sequence[Sequence[Segment]], draws: Sequence[Draw]) -> Batch:
        """The tensors of some images, each masked by its own random numbers."""
        size, channels = self._processor.size, self._processor.channels
        pixels = np.zeros((len(rows), channels, size, size), np.float32)
        for index, row in enumerate(rows):
            if row:
                start = int(self._store.offsets[row[0].document])
                stored = self._store.tokens[start : start + channels * size * size]
                pixels[index] = self._processor.normalized(stored.reshape(channels, size, size))
        noise = [np.random.default_rng([self._seed, *draw]).random(self._processor.num_patches) for draw in draws]
        is_image = torch.tensor([len(row) > 0 for row in rows])
        num_images = int(is_image.sum())
        inputs = {
            "pixel_values_BCHW": torch.from_numpy(pixels),
            "noise_BP": torch.tensor(np.stack(noise), dtype=torch.float32),
            "is_image_B": is_image,
        }
        return Batch(inputs, num_images * self._processor.num_patches, num_images * self._num_masked)
