"""Thumbnails: what `image_fn` returns ends as small PNGs beside the rows of each split's first pass."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select
from mld_core.records.store.png import encode_png, png_size
from mld_core.tracing.guard import forget_told
from mld_core.tracing.run.recorder import Recorder
from mld_core.tracing.tables.media import shrink, thumbnails

Image = pytest.importorskip("PIL.Image", reason="Pillow, which comes with torchvision, reads the PNGs back")


@pytest.fixture(autouse=True)
def _fresh_messages():
    forget_told()


def decoded(png):
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4), (1, 1), (64, 64, 3)])
def test_png_holds_the_pixels(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    png = encode_png(pixels)
    assert np.array_equal(decoded(png), pixels)
    assert png_size(png) == (shape[1], shape[0])


@pytest.mark.parametrize("bad", [np.zeros((2, 2)), np.zeros((2, 2, 2), np.uint8), np.zeros((0, 2), np.uint8)])
def test_png_refuses_what_is_no_image(bad):
    with pytest.raises(ValueError, match="expected uint8"):
        encode_png(bad)


@pytest.mark.parametrize(
    ("images", "size", "mode"),
    [
        (torch.rand(2, 3, 224, 160), (40, 56), (56, 40, 3)),
        (torch.rand(2, 1, 16, 16), (16, 16), (16, 16, 1)),
        (torch.randint(0, 256, (2, 30, 128, 3), dtype=torch.uint8), (64, 15), (15, 64, 3)),
        (np.random.default_rng(0).normal(size=(2, 20, 20)), (20, 20), (20, 20, 1)),
        ([np.zeros((300, 100, 3), np.uint8), torch.rand(3, 20, 20)], (20, 60), (60, 20, 3)),
    ],
    ids=["NCHW", "small", "NHWC", "NHW", "list"],
)
def test_layouts_and_sizes(images, size, mode):
    made = shrink(images)
    pngs = thumbnails(made.numpy() if isinstance(made, torch.Tensor) else made, 2)
    assert png_size(pngs[0]) == size
    assert decoded(pngs[0]).shape == (mode if mode[2] != 1 else mode[:2])


def test_pixel_values():
    grey = torch.full((1, 1, 4, 4), 0.5)
    assert (decoded(thumbnails(shrink(grey).numpy(), 1)[0]) == 128).all()
    bytes_ = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    assert np.array_equal(decoded(thumbnails(shrink(bytes_).numpy(), 1)[0]), bytes_[0].numpy())
    normalised = torch.tensor([[[[-2.0, 0.0], [1.0, 2.0]]]])
    assert decoded(thumbnails(shrink(normalised).numpy(), 1)[0]).ravel().tolist() == [0, 128, 191, 255]
    checks = torch.zeros(1, 1, 128, 128)
    checks[..., ::2, ::2] = 1.0  # averaged, not picked: one pixel of four is white
    assert (decoded(thumbnails(shrink(checks).numpy(), 1)[0]) == 64).all()


class Walk:
    """A run of a tiny net over labelled pictures."""

    def __init__(self, tmp_path, image_fn):
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()
        self.store = Store(tmp_path)
        self.recorder = Recorder(store=str(tmp_path), model_name="m", version_name="v", image_fn=image_fn)
        names = self.recorder.resolve_names(self.model)
        self.recorder.start(self.model, names, rank=0, world_size=1, framework="")
        self.images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def go(self, split, n_epoch):
        self.recorder.begin_pass(split, n_epoch, mode="eval")
        for place in (0, 1):
            part = self.images[place * 3 : place * 3 + 3].clone()
            batch = {
                "x": part,
                "labels": torch.tensor([0, 1, 2]),
                "input_id": [f"{split}{i + 3 * place}" for i in range(3)],
            }
            self.recorder.begin_batch(batch)
            out = self.model(part)
            self.recorder.record(batch, out, batch_idx=place)
            part.zero_()  # the training may write to its batch
        self.recorder.end_pass()

    def passes(self):
        return select(self.store, RunKey("m", "v"), n_epoch=None, passes="all")


def test_first_pass_of_each_split_has_images(tmp_path):
    walk = Walk(tmp_path, lambda batch: batch["x"])
    for split, n_epoch in (("val", 0), ("val", 1), ("test", None)):
        walk.go(split, n_epoch)
    account = walk.recorder.finish()
    assert (account.rows_written, account.rows_lost) == (18, 0)
    found = {(one.key.dataset_type, one.key.n_epoch): one for one in walk.passes()}
    assert {key: one.has("media") for key, one in found.items()} == {
        ("val", 0): True,
        ("val", 1): False,
        ("test", None): True,
    }
    media = found["val", 0].table("media")
    assert media.column_names == ["unit", "rank_", "input_id", "png"]
    assert media["input_id"].to_pylist() == [f"val{i}" for i in range(6)]
    shown = np.stack([decoded(png) for png in media["png"].to_pylist()])
    assert np.array_equal(shown, np.round(walk.images[:, 0].numpy() * 255).astype(np.uint8))
    assert found["val", 1].table("media").num_rows == 0


def test_duplicates_leave_the_images_too(tmp_path):
    walk = Walk(tmp_path, lambda batch: batch["x"])
    walk.recorder.begin_pass("val", 0, mode="eval")
    for place in (0, 1):  # the same three samples twice, as a padding sampler gives them
        batch = {"x": walk.images[:3], "labels": torch.tensor([0, 1, 2]), "input_id": ["a", "b", "c"]}
        walk.recorder.begin_batch(batch)
        walk.recorder.record(batch, walk.model(batch["x"]), batch_idx=place)
    walk.recorder.end_pass()
    walk.recorder.finish()
    (one,) = walk.passes()
    assert one.report.duplicates_dropped == 3
    assert one.table("media")["input_id"].to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    "image_fn",
    [lambda batch: batch["nothing"], lambda batch: batch["x"][:1], lambda batch: torch.zeros(3)],
    ids=["raises", "too few", "no images"],
)
def test_an_image_never_costs_a_row(tmp_path, caplog, image_fn):
    walk = Walk(tmp_path, image_fn)
    walk.go("val", 0)
    account = walk.recorder.finish()
    assert (account.rows_written, account.rows_lost) == (6, 0)
    (one,) = walk.passes()
    assert one.table("samples").num_rows == 6
    assert one.table("media")["png"].to_pylist() == [None] * 6
    assert sum("thumbnails of that batch" in message for message in caplog.messages) == 1


def test_without_image_fn_nothing_is_stored(tmp_path):
    walk = Walk(tmp_path, None)
    walk.go("val", 0)
    walk.recorder.finish()
    assert not walk.passes()[0].has("media")
