"""maskedImage: what is read, what is masked, and that it learns."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from objective_runs import make_image_run, validation_batches, write_digits
from plinth_workloads.data.packing import Segment
from plinth_workloads.errors import UserError
from plinth_workloads.objectives.masked_image import patch_positions
from plinth_workloads.train.export import export_model
from training import ALONE, open_alone
from training_laws import assert_passes_change_nothing, assert_stopping_changes_nothing

pytestmark = pytest.mark.integration


def test_pixels_are_those_of_the_files(tmp_path):
    from sklearn.datasets import load_digits

    session, _ = open_alone(make_image_run(tmp_path))
    data = session.data
    assert data.store.num_documents == 1797
    assert data.store.tokens.dtype == np.uint8
    batch = data.training_rows.batch([[Segment(3, 0, 64)]], [(0, 0, 0)])
    expected = (load_digits().images[3] * 15 / 255 - 0.5) / 0.5
    np.testing.assert_allclose(batch.inputs["pixel_values_BCHW"][0, 0], expected, atol=1e-5)


def test_the_loss_is_the_models_own(tmp_path):
    session, _ = open_alone(make_image_run(tmp_path))
    session.loss.eval()
    batch = next(iter(validation_batches(session)))
    with torch.no_grad():
        theirs = session.model(pixel_values=batch.inputs["pixel_values_BCHW"], noise=batch.inputs["noise_BP"])
        ours = session.loss(**batch.inputs) / batch.num_targets
    assert batch.num_targets == theirs.mask.sum()
    torch.testing.assert_close(ours, theirs.loss, rtol=1e-5, atol=1e-6)


def test_a_new_model_knows_where_its_patches_are(tmp_path):
    session, _ = open_alone(make_image_run(tmp_path))
    model = session.model
    for positions in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        assert not positions.requires_grad
        assert len(positions[0].unique(dim=0)) == 17  # 4 x 4 patches, and what stands for the whole image
    from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

    theirs = build_2d_sinusoidal_position_embedding(4, 4, 48)
    torch.testing.assert_close(patch_positions(4, 48), torch.cat([theirs[:, 24:], theirs[:, :24]], dim=1))


def test_padding_counts_for_nothing(tmp_path):
    session, _ = open_alone(make_image_run(tmp_path))
    rows = session.data.training_rows
    row, draws = [Segment(3, 0, 64)], [(0, 0, 0), (0, 0, 1)]
    alone, padded = rows.batch([row], draws[:1]), rows.batch([row, []], draws)
    assert padded.num_targets == alone.num_targets == 8
    with torch.no_grad():
        torch.testing.assert_close(session.loss(**padded.inputs), session.loss(**alone.inputs), rtol=1e-5, atol=1e-5)


def test_a_file_that_does_not_decode_is_named(tmp_path):
    write_digits(tmp_path / "digits", images=20)
    (tmp_path / "digits" / "0007.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"digits/0007\.png is no image that can be decoded \(.*\); mend it"):
        open_alone(make_image_run(tmp_path))


def test_a_row_that_does_not_decode_is_named(tmp_path):
    folder = write_digits(tmp_path / "digits", images=20)
    images = [{"bytes": path.read_bytes(), "path": None} for path in sorted(folder.iterdir())]
    images[4] = {"bytes": b"no picture", "path": None}
    Dataset.from_dict({"scan": images}).to_parquet(tmp_path / "digits.parquet")
    data = {"train": [{"uri": f"file://{tmp_path}/digits.parquet"}]}
    with pytest.raises(UserError, match=r"digits\.parquet has no column image; it has scan"):
        open_alone(make_image_run(tmp_path / "unnamed", data=data))
    with pytest.raises(UserError, match=r"digits\.parquet row 5, column scan is no image that can be decoded"):
        open_alone(make_image_run(tmp_path / "named", data={**data, "columns": {"image": "scan"}}))


def test_a_column_of_images_trains_as_their_folder_does(tmp_path):
    folder = write_digits(tmp_path / "digits", images=40)
    images = [{"bytes": path.read_bytes(), "path": None} for path in sorted(folder.iterdir())]
    Dataset.from_dict({"image": images}).to_parquet(tmp_path / "digits.parquet")
    data = {"train": [{"uri": f"file://{tmp_path}/digits.parquet"}]}
    stores = [
        open_alone(run)[0].data.store for run in (make_image_run(tmp_path), make_image_run(tmp_path / "b", data=data))
    ]
    assert stores[0].fingerprint == stores[1].fingerprint


def test_a_model_that_restores_no_patches_is_refused(tmp_path):
    write_digits(tmp_path / "digits", images=20)
    sizes = {name: None for name in ("decoder_hidden_size", "decoder_num_hidden_layers", "image_size")}
    with pytest.raises(UserError, match="llama reads no square images in patches; use vit_mae"):
        open_alone(make_image_run(tmp_path, model={"architecture": "llama", "config": sizes, "tokenizer": None}))


def test_stopping_and_resuming_equals_never_stopping(tmp_path):
    spec = {"training": {"steps": 4}, "checkpoint": {"everySteps": 2}}
    assert_stopping_changes_nothing(tmp_path, lambda folder: make_image_run(folder, **spec))


def test_the_size_of_a_pass_changes_nothing(tmp_path):
    def make_run(folder, size):
        return make_image_run(folder, training={"microBatchSize": size, "steps": 3})

    assert_passes_change_nothing(tmp_path, make_run, tolerance=1e-5)


def test_it_beats_an_even_grey_and_goes_on_from_what_it_saved(tmp_path):
    training = {"steps": 100, "globalBatchSize": 64, "learningRate": 4e-3, "schedule": {"warmupSteps": 10}}
    session, losses = open_alone(make_image_run(tmp_path, training=training, evaluation={"everySteps": 100}))
    session.loop.train()
    data = session.data
    pixels = data.store.tokens.reshape(-1, 64) / 127.5 - 1
    grey = pixels[data.train_documents].mean()
    error = np.square(pixels[data.validation_documents] - grey).mean()
    assert losses.evaluations[100].keys() == {"loss"}
    assert losses.evaluations[100]["loss"] < 0.7 * error

    folder = tmp_path / "model"
    export_model(session.run, session.model, data.tokenizer, ALONE, folder)
    assert json.loads((folder / "preprocessor_config.json").read_text())["size"] == {"height": 8, "width": 8}
    further, more = open_alone(
        make_image_run(
            tmp_path / "further",
            model={"architecture": None, "config": None, "tokenizer": None, "uri": f"file://{folder}"},
            training={"steps": 1, "globalBatchSize": 64},
        )
    )
    further.loop.train()
    assert more.by_step[1] < 1.2 * losses.by_step[100]
