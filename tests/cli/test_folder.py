"""Folders of images: which are classes, which are parts, and what is told or refused before the work."""

import os
import shutil

import numpy as np
import PIL.Image
import pytest
import torch

from learned_aug.cli.folder import IMAGENET, open_folders
from learned_aug.digits import digits
from tests.cli.conftest import MODEL

DIGITS = digits()["train"]


@pytest.fixture
def tree(tmp_path):
    """Write two real images to each of some folders, and give the root."""

    def make(*folders, count=2):
        for place, folder in enumerate(folders):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            for k in range(count):
                pixels = (DIGITS[count * place + k][0][0] * 255).byte().numpy()
                PIL.Image.fromarray(pixels).save(tmp_path / folder / f"{k}.png")
        return tmp_path

    return make


def refused(root, message, **options):
    with pytest.raises(ValueError, match=message) as found:
        open_folders(root, size=8, **options)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_folders_become_normalized_squares_with_labels_of_their_folders(images):
    opened = open_folders(images, size=20, mean=[0.5], std=[0.25])
    image, label = opened.train[len(opened.train) - 1]
    assert image.shape == (3, 20, 20)
    assert label == 9
    assert opened.classes[label] == "digit 9"
    assert (opened.mean, opened.std) == ((0.5,) * 3, (0.25,) * 3)
    assert image.min() == -2
    assert opened.baseline(image).shape == image.shape
    assert opened.baseline(torch.full((3, 20, 20), 2.0)).min() in (-2, 2)  # padded with black
    assert open_folders(images, size=20).mean == IMAGENET[0]


def test_what_is_held_out_is_disjoint_balanced_and_repeats(images):
    one, two = (open_folders(images / "train", size=8, val=0.25, seed=3) for _ in range(2))
    assert one.val.indices == two.val.indices
    assert len(one.val) == 50
    assert sorted(one.train.indices + one.val.indices) == list(range(200))
    labels = torch.tensor(one.val.dataset.targets)
    assert (labels[one.val.indices].bincount() - labels.bincount() / 4).abs().max() <= 1


# Folders that are no classes


@pytest.mark.parametrize("options", [{}, {"val": 0.5}])
def test_one_class_is_refused(tree, options):
    root = tree("train/a", *([] if options else ["val/a"]))
    refused(root, r"train must hold two class folders or more, got one, a/", **options)


@pytest.mark.parametrize(
    ("folders", "renamed"),
    [
        (["Train/a", "Train/b", "Val/a", "Val/b"], "Train/ to train/, Val/ to val/"),
        (["TRAIN/a", "TRAIN/b"], "TRAIN/ to train/"),
        (["training/a", "training/b", "validation/a", "validation/b"], "training/ to train/, validation/ to val/"),
        (["train/a", "train/b", "valid/a", "valid/b"], "valid/ to val/"),
        (["train/a", "train/b", "Test/a", "Test/b"], "Test/ to test/"),
        (["Training/a", "Training/b", "notes"], "Training/ to train/"),
        (["train_data/a", "train_data/b", "val_data/a", "val_data/b"], "train_data/ to train/, val_data/ to val/"),
        (["train2017/a", "train2017/b", "val2017/a", "val2017/b"], "train2017/ to train/, val2017/ to val/"),
        (["Train", "Test"], "Test/ to test/, Train/ to train/"),
    ],
)
@pytest.mark.parametrize("val", [None, 0.5])
def test_parts_under_other_names_are_refused(tree, folders, renamed, val):
    assert f"rename {renamed}" in refused(tree(*folders), "parts of a data set and no classes", val=val)


def test_parts_one_level_too_deep_are_refused_with_the_right_folder(tree):
    root = tree("digits/train/a", "digits/train/b", "digits/val/a", "digits/val/b")
    refused(root, rf"has no train/, digits/ does; give --data {root / 'digits'}", val=0.5)
    refused(root, rf"give --data {root / 'digits'}")


def test_parts_in_the_place_of_classes_are_refused(tree):
    refused(tree("train/train/a", "train/train/b", "train/val/a", "train/val/b"), "train holds train/, val/", val=0.5)


def test_images_beside_their_masks_are_no_classes(tree):
    refused(tree("train/images", "train/masks"), r"got images/, masks/, kinds of files; sort", val=0.5)


def test_classes_with_a_word_of_a_part_are_classes(tree):
    root = tree("train station/day", "train station/night", "bus station/day", "bus station/night")
    with pytest.warns(UserWarning, match="read as one class"):
        assert open_folders(root, size=28, val=0.5).classes == ["bus station", "train station"]


def test_parts_below_each_class_are_refused(tree):
    root = tree("a/train", "a/val", "b/train", "b/val")
    refused(root, r"each of the folders a/, b/ .* make train/a of a/train", val=0.5)
    refused(tree("train/c/train", "train/c/test", "train/d"), r"got the parts test/, train/ of a data set", val=0.5)


def test_classes_one_level_too_deep_are_refused(tree):
    refused(tree("train/images/a", "train/images/b"), "got one, images/; move a/, b/ up to", val=0.5)


def test_images_without_class_folders_are_refused(tree):
    refused(tree("train", "val"), "train must hold a folder of images for each class, and holds images itself")
    refused(tree("alone") / "alone", "has no train/ and val/")
    refused(tree("alone") / "alone", "must hold a folder of images for each class, and holds images", val=0.5)


def test_empty_class_folders_are_named_with_what_they_hold(tree):
    root = tree("train/a", "train/b", "val/a")
    (root / "val" / "b").mkdir()
    refused(root, r"val holds class folders without images, b/; fill or delete")
    (root / "val" / "b" / "photo.heic").write_bytes(b"")
    refused(root, r"val holds class folders without images, b/, only \.heic files")


def test_other_classes_in_val_are_named_on_both_sides(tree):
    root = tree("train/a", "train/b", "val/a", "val/B", "val/c")
    assert "only train/ has b/; only val/ has B/, c/; move or rename" in refused(root, "must have the same classes")


def test_a_class_called_train_is_a_class(tree):
    opened = open_folders(tree("bus", "car", "train", count=4), size=8, val=0.5)
    assert opened.classes == ["bus", "car", "train"]
    assert len(opened.train) == len(opened.val) == 6


def test_what_is_missing_or_too_much_is_named(tree):
    root = tree("train/a", "train/b")
    refused(root, "has train/ and no val/; add it, or hold out a share with --val 0.1")
    refused(tree("val/a", "val/b"), "has a folder val/ already", val=0.5)
    shutil.rmtree(root / "train")
    refused(root, "holds val/ and no train/")
    refused(root / "none", "no folder")
    (root / "nothing").mkdir()
    refused(root / "nothing", "and has none", val=0.5)


def test_hidden_folders_are_no_classes(tree):
    root = tree("train/a", "train/b", "train/.ipynb_checkpoints", "train/__MACOSX", "train/a/.thumbs", "val/a", "val/b")
    opened = open_folders(root, size=8)
    assert opened.classes == ["a", "b"]
    assert len(opened.train) == 4


def test_the_same_images_in_two_parts_are_refused(tree):
    root = tree("train/a", "train/b", "val/a")
    (root / "val" / "b").symlink_to(root / "train" / "b")
    refused(root, r"train/ and val/ must hold different images, .*train/b/0\.png and .*val/b/0\.png are one file")
    (root / "val" / "b").unlink()
    (root / "val" / "b").mkdir()
    os.link(root / "train" / "b" / "1.png", root / "val" / "b" / "1.png")
    refused(root, "must hold different images")


def test_one_image_in_two_classes_is_refused(tree):
    root = tree("train/a", "train/b", "val/a", "val/b")
    os.link(root / "train" / "a" / "1.png", root / "train" / "b" / "2.png")
    refused(root, r"the classes of train/ must hold different images, .*a/1\.png and .*b/2\.png are one file")


def test_an_image_behind_a_broken_link_is_refused_with_its_path(tree):
    root = tree("train/a", "train/b", "val/a", "val/b")
    (root / "train" / "b" / "3.png").symlink_to(root / "unplugged.png")
    refused(root, r"train/b/3\.png cannot be read")


def test_what_may_not_be_meant_is_told(tree):
    root = tree("train/a/2019", "train/b/2019", "train", "val/a", "val/b")
    (root / "val" / "a" / "more.heic").write_bytes(b"")
    with pytest.warns(UserWarning, match="not read|read as one class") as told:
        open_folders(root, size=8)
    texts = [str(warning.message) for warning in told]
    assert any("the classes are a/, b/; images of a/, b/ lie in folders below, such as 2019/" in t for t in texts)
    assert any("2 images beside the class folders are not read" in t for t in texts)
    assert any("files of kinds that are not read: 1 .heic" in t for t in texts)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_file_that_is_no_image_is_named_before_the_work(tree, part):
    root = tree(*(f"{p}/{c}" for p in ("train", "val", "test") for c in "ab"))
    (root / part / "b" / "1.png").write_bytes(b"no picture")
    refused(root, rf"{part}/b/1\.png is no image that can be read")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [0.1, 0.2]}, "mean must be 1 or 3 numbers, got 2"),
        ({"std": [0.0]}, "std must be of images in"),
        ({"mean": [123.7, 116.3, 103.5]}, "divide those of images in"),
        ({"std": [float("nan")]}, "std must be of images in"),
        ({"baseline": "flip"}, "baseline must be one of"),
    ],
)
def test_a_normalization_that_cannot_be_is_refused(images, options, message):
    refused(images, message, **options)


def test_files_of_every_kind_become_the_values_that_they_show(tree):
    root = tree("train/a", "train/b")
    kinds = {
        "16.png": PIL.Image.fromarray(np.full((8, 8), 20_000, np.uint16)),
        "alpha.png": PIL.Image.new("RGBA", (8, 8), (0, 0, 0, 0)),
        "palette.png": PIL.Image.new("RGB", (8, 8), (40, 40, 40)).quantize(2),
    }
    for name, image in kinds.items():
        image.save(root / "train" / "a" / name)
    opened = open_folders(root, size=8, val=0.3, gray=True)
    whole = opened.train.dataset
    values = {os.path.basename(path): whole[k][0] for k, path in enumerate(whole.paths)}
    for name, level in (("16.png", 78), ("alpha.png", 255), ("palette.png", 40)):
        assert values[name].unique().mul(255).tolist() == pytest.approx([level])


# In the command itself


@pytest.mark.parametrize(
    ("folders", "options", "message"),
    [
        (["train/a", "val/a"], [], "got one, a/"),
        (["Train/a", "Train/b", "Val/a", "Val/b"], ["--val", "0.2"], "rename Train/ to train/, Val/ to val/"),
        (["x/train/a", "x/train/b"], ["--val", "0.2"], "give --data"),
        (["train/a", "train/b", "val/a", "val/c"], [], "only train/ has b/; only val/ has c/"),
    ],
)
def test_fit_refuses_them_in_one_line_and_writes_nothing(tree, tmp_path_factory, failing, folders, options, message):
    out = tmp_path_factory.mktemp("out")
    arguments = ["--model", MODEL, "--train-steps", "1", "--data", tree(*folders), "--out", out, "--size", "28"]
    assert message in failing("fit", *arguments, *options)
    assert list(out.iterdir()) == []
