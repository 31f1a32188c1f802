"""learned-aug preview: pictures of draws for files of every kind."""

import numpy as np
import PIL.Image
import pytest
import torch

from learned_aug import Augmenter, AugmenterConfig
from learned_aug.cli.main import main

GAP = 2


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """An augmenter that changes nothing, so that a picture shows what was read."""
    folder = tmp_path_factory.mktemp("still")
    Augmenter(AugmenterConfig(channels=3, size=16, affine=0, warp=0, color=0)).save_pretrained(folder)
    return folder


def shown(path, row=0, side=32):
    """The original at the left of a row."""
    with PIL.Image.open(path) as picture:
        top = GAP + row * (side + GAP)
        return np.asarray(picture.convert("RGB").crop((GAP, top, GAP + side, top + side))).astype(int)


def draw(still, images, out, *more):
    arguments = ["preview", still, *images, "--out", out, "--side", "32", "--draws", "2", *more]
    return main([str(a) for a in arguments])


def halves(size=(32, 32)):
    """Left half red, right half black."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[:, : size[1] // 2, 0] = 255
    return PIL.Image.fromarray(pixels)


def test_preview_draws_a_row_for_each_image_of_files_and_folders(fitted, images, tmp_path, capsys):
    chosen = [images / "test" / "digit 3", next((images / "test" / "digit 4").iterdir())]
    count = len(list(chosen[0].iterdir())) + 1
    out = tmp_path / "new" / "grid.png"
    arguments = ["preview", str(fitted / "augmenter"), *map(str, chosen), "--draws", "4", "--side", "32", "--out"]
    assert main([*arguments, str(out)]) == 0
    assert f"{count} images, 4 draws" in capsys.readouterr().out
    with PIL.Image.open(out) as picture:
        assert picture.size == (5 * 34 + 2, count * 34 + 2)
    again = tmp_path / "again.png"
    for seed, same in (("0", True), ("1", False)):
        assert main([*arguments, str(again), "--seed", seed]) == 0
        assert (again.read_bytes() == out.read_bytes()) == same


def test_preview_draws_a_traversal_of_a_color_image(tmp_path):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 60, 3), generator=generator, dtype=torch.uint8)
    PIL.Image.fromarray(pixels.numpy()).save(tmp_path / "photo.png")
    config = AugmenterConfig(size=16, mean=(0.5,), std=(0.5,))
    augmenter = Augmenter(config, generator=generator)
    augmenter.calibrate_(torch.rand(10, 3, 16, 16, generator=generator), generator=generator)
    augmenter.save_pretrained(tmp_path / "aug")
    arguments = ["preview", str(tmp_path / "aug"), str(tmp_path / "photo.png"), "--out", str(tmp_path / "way.png")]
    assert main([*arguments, "--kind", "traversal", "--side", "48", "--draws", "6"]) == 0
    with PIL.Image.open(tmp_path / "way.png") as picture:
        assert picture.height == 5 * 50 + 2


def test_a_picture_larger_than_its_format_holds_is_refused_and_nothing_is_written(still, tmp_path, capsys):
    halves().save(tmp_path / "photo.png")
    out = tmp_path / "grid.webp"  # at most 16,383 pixels wide
    assert draw(still, [tmp_path / "photo.png"], out, "--draws", "500") == 1
    said = capsys.readouterr().err
    assert "cannot hold 17036 x 36 pixels as WEBP" in said
    assert "lower --draws, --side or --limit, or write .png" in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("orientation", "red"), [(1, np.s_[:, :12]), (3, np.s_[:, 20:]), (6, np.s_[:12]), (8, np.s_[20:])]
)
def test_preview_shows_images_upright(still, tmp_path, orientation, red):
    exif = PIL.Image.Exif()
    exif[274] = orientation
    halves().save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    assert draw(still, [tmp_path / "a.jpg"], tmp_path / "grid.png") == 0
    read = shown(tmp_path / "grid.png")[..., 0]
    assert read[red].min() > 200
    assert read.mean() == pytest.approx(127, abs=12)


@pytest.mark.parametrize("kind", ["16 bits", "palette", "alpha"])
def test_preview_shows_other_kinds_of_files_rightly(still, tmp_path, kind):
    path, expected = tmp_path / "a.png", [78, 78, 78]
    if kind == "16 bits":
        PIL.Image.fromarray(np.full((32, 32), 20_000, np.uint16)).save(path)
    elif kind == "palette":
        PIL.Image.new("RGB", (32, 32), (10, 200, 30)).quantize(4).save(path)
        expected = [10, 200, 30]
    else:
        PIL.Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(path)
        expected = [255, 255, 255]
    assert draw(still, [path], tmp_path / "grid.png") == 0
    assert abs(shown(tmp_path / "grid.png") - expected).max() <= 1


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a.webp", "WEBP"), ("a.tiff", "TIFF")]
)
def test_the_name_says_the_format(still, tmp_path, name, kind):
    halves().save(tmp_path / "in.png")
    assert draw(still, [tmp_path / "in.png"], tmp_path / name) == 0
    with PIL.Image.open(tmp_path / name) as picture:
        assert picture.format == kind
    assert abs(shown(tmp_path / name)[16, [4, 28], 0] - [255, 0]).max() < 12


@pytest.mark.parametrize("name", ["grid", "grid.txt", "grid.pdf", "grid.png.gz"])
def test_a_name_of_no_format_is_refused(still, tmp_path, failing, name):
    halves().save(tmp_path / "in.png")
    error = failing("preview", still, tmp_path / "in.png", "--out", tmp_path / name)
    assert "must be a file whose name ends in one of .png, .jpg" in error
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(("options", "rows"), [([], 16), (["--limit", "5"], 5), (["--limit", "99"], 20)])
def test_rows_are_limited_and_spread_over_the_files(still, tmp_path, capsys, options, rows):
    (tmp_path / "many").mkdir()
    for k in range(20):
        PIL.Image.new("L", (16, 16), 12 * k).save(tmp_path / "many" / f"{k:02}.png")
    assert draw(still, [tmp_path / "many"], tmp_path / "grid.png", *options) == 0
    captured = capsys.readouterr()
    with PIL.Image.open(tmp_path / "grid.png") as picture:
        assert picture.height == rows * 34 + 2
    assert ("of 20 images are shown, evenly spread; --limit sets how many" in captured.err) == (rows < 20)
    levels = [shown(tmp_path / "grid.png", row).mean() / 12 for row in range(rows)]
    assert levels == pytest.approx([k * 20 // rows for k in range(rows)], abs=0.1)


def test_preview_names_a_broken_file_of_a_folder(still, tmp_path, failing):
    (tmp_path / "many").mkdir()
    halves((200, 200)).save(tmp_path / "many" / "a.png")
    data = (tmp_path / "many" / "a.png").read_bytes()
    (tmp_path / "many" / "b.png").write_bytes(data[: len(data) // 2])
    out = ("--out", tmp_path / "grid.png")
    assert "b.png cannot be read" in failing("preview", still, tmp_path / "many", *out)
    PIL.Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "many" / "b.png", "TIFF")
    assert "b.png is a TIFF of floating values" in failing("preview", still, tmp_path / "many", *out)
    halves().save(tmp_path / "many" / "b.png", save_all=True, append_images=[halves((32, 32)).rotate(90)])
    assert "b.png is a PNG of 2 frames" in failing("preview", still, tmp_path / "many", *out)


def test_preview_answers_a_mistake_in_one_line(fitted, images, tmp_path, failing, monkeypatch):
    augmenter, out = fitted / "augmenter", ("--out", tmp_path / "grid.png")
    image = next(images.rglob("*.png"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    assert "No such file" in failing("preview", augmenter, tmp_path / "none.png", *out)
    assert "holds no images" in failing("preview", augmenter, tmp_path / "empty", *out)
    assert "is no image" in failing("preview", augmenter, tmp_path / "text.png", *out)
    assert "--draws must be 2 or more" in failing("preview", augmenter, image, *out, "--draws", "0")
    assert "--limit must be 1 or more" in failing("preview", augmenter, image, *out, "--limit", "0")
    assert "one image, got 2" in failing("preview", augmenter, image, image, *out, "--kind", "traversal")
    assert "no pretrained weights are called 'cifar11'" in failing("preview", "cifar11", image, *out)
    assert "has no config.json" in failing("preview", tmp_path, image, *out)
    Augmenter(AugmenterConfig(channels=5, size=8)).save_pretrained(tmp_path / "five")
    assert "5 channels; 1 or 3 can be shown" in failing("preview", tmp_path / "five", image, *out)
    monkeypatch.chdir(fitted.parent)
    assert "write ./run/augmenter" in failing("preview", "run/augmenter", image, *out)
    assert not (tmp_path / "grid.png").exists()


def test_an_image_that_is_shown_is_not_written_over(still, tmp_path, capsys):
    halves().save(tmp_path / "photo.png")
    before = (tmp_path / "photo.png").read_bytes()
    assert draw(still, [tmp_path / "photo.png"], tmp_path / "photo.png") == 1
    assert "is one of the images to show" in capsys.readouterr().err
    assert (tmp_path / "photo.png").read_bytes() == before
    for k in range(3):
        halves().save(tmp_path / f"photo{k}.png")
    assert draw(still, [tmp_path], tmp_path / "photo2.png", "--limit", "1") == 1  # nor one that --limit leaves out
    assert (tmp_path / "photo2.png").read_bytes() == before
