"""torch.compile, torch.export and ONNX: with batch, height and width left open."""

import importlib.util

import pytest
import torch
from torch.export import Dim

from tests.test_augmenter import build, images, seeded

FORMS = [{}, {"variant": "serial"}, {"channels": 1}, {"fields": "pixel"}]


def close(program, augmenter, shape):
    x = images(shape[0], augmenter.config, shape[1:])
    noise = augmenter.draw_noise(shape[0], generator=seeded(2))
    torch.testing.assert_close(program(x, noise), augmenter(x, noise), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("default")
def test_exports_at_a_fixed_shape():
    augmenter = build()
    example = images(4, augmenter.config), augmenter.draw_noise(4)
    close(torch.export.export(augmenter, example).module(), augmenter, (4, 32, 32))


@pytest.mark.newest
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("strict", [False, True])
def test_exports_with_an_open_batch(form, strict):
    augmenter = build(**form)
    example = images(4, augmenter.config), augmenter.draw_noise(4)
    batch = Dim("batch", min=2, max=64)
    program = torch.export.export(augmenter, example, dynamic_shapes=({0: batch}, {0: batch}), strict=strict).module()
    for count in (2, 4, 9):
        close(program, augmenter, (count, 32, 32))


@pytest.mark.newest
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("form", FORMS[:3], ids=str)
def test_exports_with_open_height_and_width(form):
    augmenter = build(**form)
    example = images(4, augmenter.config, (48, 56)), augmenter.draw_noise(4)
    batch, height, width = Dim("batch", min=2, max=64), Dim("height", min=33, max=256), Dim("width", min=33, max=256)
    shapes = {0: batch, 2: height, 3: width}, {0: batch}
    program = torch.export.export(augmenter, example, dynamic_shapes=shapes).module()
    for shape in ((4, 48, 56), (2, 40, 40), (3, 97, 35)):
        x = images(shape[0], augmenter.config, shape[1:])
        noise = augmenter.draw_noise(shape[0], generator=seeded(2))
        # White noise changes by 1 a pixel, and coordinates round.
        torch.testing.assert_close(program(x, noise), augmenter(x, noise), atol=1e-4, rtol=0)


@pytest.mark.newest
@pytest.mark.filterwarnings("default")
def test_sizes_left_open_may_be_the_training_size_and_that_of_the_example():
    augmenter = build()
    example = images(4, augmenter.config), augmenter.draw_noise(4)
    shapes = {2: Dim("height", min=8, max=512), 3: Dim("width", min=8, max=512)}, None
    program = torch.export.export(augmenter, example, dynamic_shapes=shapes).module()
    for size in ((32, 32), (8, 8), (40, 56)):
        x = images(4, augmenter.config, size)
        noise = augmenter.draw_noise(4, generator=seeded(2))
        torch.testing.assert_close(program(x, noise), augmenter(x, noise), atol=1e-4, rtol=0)


@pytest.mark.newest
@pytest.mark.filterwarnings("default")
def test_goes_to_onnx_with_an_open_batch(tmp_path):
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        pytest.skip("needs onnx, onnxscript and onnxruntime, which no extra brings")
    runtime = importlib.import_module("onnxruntime")
    augmenter = build()
    example = images(4, augmenter.config), augmenter.draw_noise(4)
    batch = Dim("batch", min=2, max=64)
    torch.onnx.export(
        augmenter, example, tmp_path / "a.onnx", dynamo=True, dynamic_shapes=({0: batch}, {0: batch}), verbose=False
    )
    session = runtime.InferenceSession(tmp_path / "a.onnx")
    x = images(3, augmenter.config)
    noise = augmenter.draw_noise(3)
    names = [i.name for i in session.get_inputs()]
    (out,) = session.run(None, dict(zip(names, (x.numpy(), noise.numpy()), strict=True)))
    torch.testing.assert_close(torch.from_numpy(out), augmenter(x, noise), atol=1e-4, rtol=1e-3)
