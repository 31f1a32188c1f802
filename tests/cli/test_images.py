"""Image files of every kind: read as a viewer shows them, or refused with their path."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from PIL import TiffImagePlugin
from torch.utils.data import DataLoader

from learned_aug.cli.folder import LabeledFiles
from learned_aug.cli.images import ImageError, check_headers, image_files, note_sizes, read_image
from learned_aug.cli.main import one_line
from learned_aug.digits import digits

ORIENTATION = 274


def digit():
    """A real image, (28, 28), uint8; the same nowhere under a turn."""
    return (digits()["train"][4][0][0] * 255).byte().numpy()


def gray(path):
    return np.asarray(read_image(path, gray=True)).astype(int)


def rgb(path):
    return np.asarray(read_image(path)).astype(int)


# 16 bits


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_gray_is_scaled_by_257(tmp_path, name):
    values = np.array([[0, 128, 129, 20_000], [32_768, 65_278, 65_279, 65_535]], np.uint16)
    if name == "a.pgm":  # by hand: older versions of PIL write none of 16 bits
        (tmp_path / name).write_bytes(b"P5\n4 2\n65535\n" + values.astype(">u2").tobytes())
    else:
        PIL.Image.fromarray(values).save(tmp_path / name)
    assert gray(tmp_path / name).tolist() == [[0, 0, 1, 78], [128, 254, 254, 255]]
    assert (rgb(tmp_path / name) == gray(tmp_path / name)[..., None]).all()


def test_a_real_image_of_16_bits_is_that_of_8(tmp_path):
    PIL.Image.fromarray(digit().astype(np.uint16) * 257).save(tmp_path / "a.png")
    assert (gray(tmp_path / "a.png") == digit()).all()


def test_16_bit_tiff_with_white_as_zero_is_turned_over(tmp_path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = 0
    PIL.Image.fromarray(np.full((4, 4), 20_000, np.uint16)).save(tmp_path / "a.tif", tiffinfo=tags)
    assert set(gray(tmp_path / "a.tif").flat) == {255 - 78}


def test_16_bit_color_png_is_scaled(tmp_path):
    """Written by hand, as PIL writes none."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + struct.pack(">6H", 0, 20_000, 65_535, 257, 514, 40_000) for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(data)
    assert abs(rgb(tmp_path / "a.png")[0] - [[0, 78, 255], [1, 2, 156]]).max() <= 1  # PIL drops the lower byte


# Floats and wide integers


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (np.full((4, 4), 0.5, np.float32), "floating values"),
        (np.full((4, 4), 200.0, np.float32), "floating values"),
        (np.full((4, 4), 70_000, np.int32), "32-bit integers"),
    ],
)
def test_values_without_a_stated_range_are_refused_with_the_path(tmp_path, values, what):
    PIL.Image.fromarray(values).save(tmp_path / "a.tif")
    for read in (read_image, lambda path: check_headers([path])):
        with pytest.raises(ImageError, match=rf"a\.tif is a TIFF of {what}.*PNG of 8 or 16 bits"):
            read(tmp_path / "a.tif")


# Palettes, alpha, other spaces


def test_a_palette_is_resolved(tmp_path):
    image = PIL.Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png")
    assert rgb(tmp_path / "a.png").tolist() == [[[255, 0, 0], [0, 0, 255]]]
    image.save(tmp_path / "b.png", transparency=1)
    assert rgb(tmp_path / "b.png").tolist() == [[[255, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_transparent_parts_show_white_and_not_the_color_that_they_hide(tmp_path, name):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 4:] = 200, 100, 0, 255
    pixels[:, :4] = 255, 0, 0, 0
    PIL.Image.fromarray(pixels).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    read = rgb(tmp_path / name)
    assert read[:, :4].min() == 255
    assert (read[:, 4:] == [200, 100, 0]).all()


def test_half_transparent_gray_is_mixed_with_white(tmp_path):
    PIL.Image.fromarray(np.full((2, 2, 2), [100, 51], np.uint8)).save(tmp_path / "a.png")
    assert abs(gray(tmp_path / "a.png") - round(0.2 * 100 + 0.8 * 255)).max() <= 1


def test_cmyk_and_one_bit_become_rgb(tmp_path):
    PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert abs(rgb(tmp_path / "a.jpg") - [255, 0, 0]).max() < 8
    PIL.Image.fromarray(digit() > 100).save(tmp_path / "b.png")
    assert (gray(tmp_path / "b.png") == 255 * (digit() > 100)).all()


# Orientation and frames


@pytest.mark.parametrize(("orientation", "turned"), [(3, 2), (6, -1), (8, 1)])
def test_exif_orientation_is_applied(tmp_path, orientation, turned):
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    PIL.Image.fromarray(digit()).save(tmp_path / "a.png", exif=exif)
    PIL.Image.fromarray(digit()).save(tmp_path / "a.jpg", exif=exif, quality=100)
    expected = np.rot90(digit(), turned)
    assert (gray(tmp_path / "a.png") == expected).all()
    assert abs(gray(tmp_path / "a.jpg") - expected).mean() < 2


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # of PIL
def test_damaged_exif_leaves_the_image_as_it_is_stored(tmp_path):
    PIL.Image.fromarray(digit()).save(tmp_path / "a.jpg", quality=100, exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert abs(gray(tmp_path / "a.jpg") - digit()).mean() < 2


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "a.gif"])
def test_several_frames_are_refused_with_the_path(tmp_path, name):
    frames = [PIL.Image.fromarray(np.rot90(digit(), k)) for k in range(3)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    for read in (read_image, lambda path: check_headers([path])):
        with pytest.raises(ImageError, match=rf"{name} is a \w+ of 3 frames; save one of them"):
            read(tmp_path / name)


# Broken files


def encoded(kind):
    buffer = io.BytesIO()
    PIL.Image.fromarray(digit()).resize((64, 64)).save(buffer, kind)
    return buffer.getvalue()


BROKEN = {
    "truncated.jpg": encoded("JPEG")[:-400],
    "truncated.png": encoded("PNG")[:-400],
    "flipped.png": encoded("PNG")[:80] + b"\xff" * 40 + encoded("PNG")[120:],
    "truncated.tif": encoded("TIFF")[:2000],
    "cut header.bmp": encoded("BMP")[:20],
    "empty.png": b"",
    "text.jpg": b"no picture",
    "webpage.png": b"<html>404</html>",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(ImageError, match=name) as found:
        read_image(tmp_path / name)
    assert "\n" not in str(found.value)


def test_missing_folders_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(ImageError, match=r"none\.png cannot be read \(No such file"):
        read_image(tmp_path / "none.png")
    (tmp_path / "dir.png").mkdir()
    with pytest.raises(ImageError, match=r"dir\.png cannot be read"):
        read_image(tmp_path / "dir.png")


def test_headers_name_the_first_broken_files_and_count_the_rest(tmp_path):
    for name, data in BROKEN.items():
        (tmp_path / name).write_bytes(data)
    PIL.Image.fromarray(digit()).save(tmp_path / "good.png")
    with pytest.raises(ImageError, match=r"cut header\.bmp.*empty\.png.*text\.jpg.*and 1 more of 9 files"):
        check_headers(image_files(tmp_path))
    assert check_headers([tmp_path / "good.png"]) == [28]


# Python 3.12 and later warn of every fork beside threads; torch's loader forks by default.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["truncated.jpg", "truncated.png", "text.jpg"])
def test_a_workers_error_is_one_line_with_the_path(tmp_path, name):
    (tmp_path / name).write_bytes(BROKEN[name])
    data = LabeledFiles([(str(tmp_path / name), 0)], ["a"], lambda image: image)
    with pytest.raises(ImageError) as found:
        list(DataLoader(data, num_workers=1))
    line = one_line(found.value)
    assert line.startswith(str(tmp_path / name))
    assert line.endswith("or delete it")
    assert "Traceback" not in line


def test_workers_errors_without_a_known_form_still_are_one_line():
    assert one_line(ValueError("Caught KeyError in DataLoader worker process 0.\nOriginal nothing")).count("\n") == 0
    assert one_line(ValueError()) == "ValueError"


# Which files, and their sizes


def test_hidden_files_and_folders_are_left_out(tmp_path):
    for name in ("a.png", "b/c.JPG", ".d.png", "._e.jpg", ".ipynb_checkpoints/f.png", "__MACOSX/g.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "h.png").mkdir()
    assert [p.name for p in image_files(tmp_path)] == ["a.png", "c.JPG"]


def test_images_of_linked_folders_are_found_once(tmp_path):
    for name in ("class/a.png", "elsewhere/b.png", "elsewhere/deep/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    folder = tmp_path / "class"
    for place in (folder / "more", folder / "again", tmp_path / "linked"):
        place.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(folder)
    assert [p.name for p in image_files(folder)] == ["a.png", "b.png", "c.png"]
    assert [p.name for p in image_files(tmp_path / "linked")] == ["b.png", "c.png", "a.png"]


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "unplugged" / "gone.png")
    with pytest.raises(ImageError, match=r"gone\.png cannot be read \(No such file or directory\)"):
        check_headers(image_files(tmp_path))


def test_sizes_are_told_before_the_work():
    told = []
    with pytest.warns(UserWarning, match=r"shorter side is 64 px.*--size is 224.*12\.2 times the work; give --size 64"):
        note_sizes([64, 64, 900], 224, told.append)
    note_sizes([300, 400, 500], 224, told.append)
    assert told == [
        "the images are reduced: their shorter side is 400 px (median of 3), --size is 224; the classifier should have "
        "been trained at that size"
    ]
    note_sizes([224], 224, told.append)
    assert len(told) == 1
