from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.data.feeds import InputSpec
from onnxq.data.images import Images
from onnxq.data.readers import open_reader
from onnxq.errors import CalibrationError, MissingExtraError, RecipeError

pytestmark = pytest.mark.images

FLOAT = np.dtype(np.float32)
NCHW = [InputSpec("x", FLOAT, ("N", 3, 8, 8))]
NHWC = [InputSpec("x", FLOAT, ("N", 8, 8, 3))]


def write(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def photos(folder: Path, count: int = 3, size: tuple[int, int] = (8, 8)) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]
    for index, pixels in enumerate(images):
        write(folder / f"{index}.png", pixels)
    return images


def read(given: object, inputs: list[InputSpec]) -> list[np.ndarray]:
    return [feed[inputs[0].name] for feed in open_reader(given, inputs)]


@pytest.mark.parametrize("inputs", [NCHW, NHWC], ids=["channels first", "channels last"])
def test_pixels_arrive_in_the_layout_of_the_input(tmp_path: Path, inputs: list[InputSpec]) -> None:
    images = photos(tmp_path)
    found = read(Images(tmp_path, "0-255"), inputs)
    for pixels, array in zip(images, found, strict=True):
        expected = pixels.astype(np.float32)
        np.testing.assert_array_equal(array[0] if inputs is NHWC else array[0].transpose(1, 2, 0), expected)


def test_uint8_inputs_get_the_pixels_without_a_guess(tmp_path: Path) -> None:
    images = photos(tmp_path)
    reader = open_reader(tmp_path, [InputSpec("x", np.dtype(np.uint8), (1, 8, 8, 3))])
    np.testing.assert_array_equal(next(iter(reader))["x"][0], images[0])
    assert reader.notes == []


def test_grey_rgba_sixteen_bits_and_palettes_become_what_the_model_takes(tmp_path: Path) -> None:
    from PIL import Image

    ramp = np.linspace(0, 255, 64).reshape(8, 8).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(np.dstack([ramp, ramp, ramp, 255 - ramp])).save(tmp_path / "rgba.png")
    Image.fromarray(ramp).convert("P").save(tmp_path / "palette.png")
    for channels in (1, 3):
        for array in read(Images(tmp_path, "0-255"), [InputSpec("x", FLOAT, (1, channels, 8, 8))]):
            np.testing.assert_allclose(array[0, 0], ramp, atol=1)


def test_every_format_that_is_named_is_read(tmp_path: Path) -> None:
    from PIL import Image

    flat = Image.new("RGB", (9, 7), (200, 100, 50))
    for suffix in ("png", "JPG", "jpeg", "webp", "bmp"):
        flat.save(tmp_path / f"image.{suffix}")
    found = read(Images(tmp_path, "0-255"), NCHW)
    assert len(found) == 5
    for array in found:
        np.testing.assert_allclose(array[0].mean((1, 2)), [200, 100, 50], atol=4)


def test_the_middle_is_cut_out_or_the_whole_is_stretched_or_padded(tmp_path: Path) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 6:26] = 255  # what a crop of the middle sees
    write(tmp_path / "wide.png", pixels)
    (cropped,) = read(Images(tmp_path, "0-255", resize=8), NCHW)
    assert cropped.min() > 250
    (stretched,) = read(Images(tmp_path, "0-255"), NCHW)
    assert 0.5 < (stretched > 127).mean() < 0.8
    (padded,) = read(Images(tmp_path, "0-255", resize="pad"), NCHW)
    np.testing.assert_array_equal(padded[0, :, 0], 114)
    np.testing.assert_array_equal(padded[0, :, -1], 114)


def test_small_images_keep_their_border(tmp_path: Path) -> None:
    images = photos(tmp_path, 1)
    (found,) = read(Images(tmp_path, "imagenet"), NHWC)
    expected = (images[0] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)


def test_a_model_of_any_size_gets_the_own_size_in_multiples_of_32_or_the_crop(tmp_path: Path) -> None:
    photos(tmp_path, 1, (50, 100))
    anything = [InputSpec("x", FLOAT, (None, 3, "H", "W"))]
    assert [array.shape for array in read(Images(tmp_path, "0-1"), anything)] == [(1, 3, 64, 96)]
    assert [array.shape for array in read(Images(tmp_path, "0-1", crop=40), anything)] == [(1, 3, 40, 40)]


def test_a_fixed_batch_is_filled(tmp_path: Path) -> None:
    photos(tmp_path, 5)
    inputs = [InputSpec("x", FLOAT, (2, 3, 8, 8))]
    assert [array.shape for array in read(Images(tmp_path, "0-1"), inputs)] == [(2, 3, 8, 8)] * 2


def test_folders_are_classes_and_take_turns(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        photos(tmp_path / name, 3)
    reader = open_reader(Images(tmp_path, "0-1"), NCHW)
    assert reader.labels is not None
    assert reader.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert reader.part(2, 4).labels.tolist() == [0, 1]  # type: ignore[union-attr]
    assert any("cat = 0, dog = 1" in note for note in reader.notes)


def test_empty_folders_are_classes_without_samples(tmp_path: Path) -> None:
    """Of a model of a thousand classes one may have photos of ten: their numbers are still those of the model."""
    photos(tmp_path / "bird", 1)
    photos(tmp_path / "fox", 1)
    for name in ("ant", "cat", ".cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "boxes.txt").write_text("none")
    reader = open_reader(Images(tmp_path, "0-1"), NCHW)
    assert reader.labels is not None and reader.labels.tolist() == [1, 3]
    assert any("2 of 4 folders are empty" in note for note in reader.notes), reader.notes


def test_empty_folders_alone_are_no_samples(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    with pytest.raises(CalibrationError):
        open_reader(Images(tmp_path, "0-1"), NCHW)


def test_folders_named_by_numbers_are_those_classes(tmp_path: Path) -> None:
    for name in ("7", "12"):
        photos(tmp_path / name, 1)
    assert sorted(open_reader(Images(tmp_path, "0-1"), NCHW).labels.tolist()) == [7, 12]  # type: ignore[union-attr]


def test_few_damaged_files_are_left_out_by_name_and_many_are_an_error(tmp_path: Path) -> None:
    photos(tmp_path, 39)
    truncated = (tmp_path / "0.png").read_bytes()[:100]
    (tmp_path / "cut.png").write_bytes(truncated)
    reader = open_reader(Images(tmp_path, "0-1"), NCHW)
    assert reader.count == 39
    assert any(note.startswith(f"{tmp_path}: 1 of 40 files cannot be read: cut.png") for note in reader.notes)
    for index in range(3):
        (tmp_path / f"text{index}.jpg").write_text("no image")
    with pytest.raises(CalibrationError, match=r"4 of 43 files cannot be read: .* more than 5% is too many"):
        open_reader(Images(tmp_path, "0-1"), NCHW)


def test_reading_twice_gives_the_same(tmp_path: Path) -> None:
    photos(tmp_path, 4)
    reader = open_reader(Images(tmp_path, "0-1"), NCHW)
    first, second = list(reader), list(reader)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one["x"], other["x"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([InputSpec("ids", np.dtype(np.int64), ("N", "L"))], r"input 'ids' takes int64 \(N, L\), which is no image"),
        ([*NCHW, InputSpec("scale", FLOAT, (1,))], r"images fill one input, but the model needs 2 \('x', 'scale'\)"),
        ([InputSpec("x", FLOAT, (64, 3, 8, 8))], "holds 3 images, but the model takes 64 at a time; add images"),
    ],
)
def test_models_that_take_no_images_say_so(tmp_path: Path, inputs: list[InputSpec], message: str) -> None:
    photos(tmp_path)
    with pytest.raises(CalibrationError, match=message):
        open_reader(tmp_path, inputs)


def test_no_folder_and_no_images_are_said(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"x\.npz: is no folder; --preprocess, --mean and the like"):
        open_reader(Images(tmp_path / "x.npz", "0-1"), NCHW)
    with pytest.raises(CalibrationError, match="holds no images"):
        open_reader(Images(tmp_path, "0-1"), NCHW)
    photos(tmp_path)
    with pytest.raises(RecipeError, match=r"--crop 5: the model's input 'x' is \(N, 3, 8, 8\); leave --crop out"):
        open_reader(Images(tmp_path, "0-1", crop=5), NCHW)
    with pytest.raises(RecipeError, match="--crop 5: the model's input 'x'"):  # where the rest is guessed, too
        open_reader(Images(tmp_path, crop=5), NCHW)


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r'pip install "onnxq\[images\]"'):
        open_reader(tmp_path, NCHW)
