"""The fused pass equals warp, color filter and clamp one after the other, whatever it is given."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learned_aug.draw import Draw
from learned_aug.functional.fused import CHUNK


def drawn(batch, channels, size, *, flow=4, color=1, smooth=True, dtype=torch.float32, bounds=((0.0,), (1.0,))):
    """A draw of mild fields: `flow` and `color` are points along each side, 0 for none."""
    generator = torch.Generator().manual_seed(0)
    filters = 12 if channels == 3 else 2 * channels

    def field(count, points):
        return torch.randn(batch, count, points, points, generator=generator, dtype=torch.float64).to(dtype)

    return Draw(
        size,
        field(2, flow) * 0.05 * min(size) if flow else None,
        field(filters, color) * 0.1 if color else None,
        *bounds,
        smooth,
    )


def images(batch, channels, size, dtype=torch.float32):
    x = torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(1))
    return (x * 255).to(dtype) if dtype == torch.uint8 else x.to(dtype)


def plain(draw, x):
    """What autograd sees."""
    values = x.double() / 255 if x.dtype == torch.uint8 else x.double()
    out = draw.recolor(draw.warp(values), values)
    return out * 255 if x.dtype == torch.uint8 else out


TOLERANCE = {torch.uint8: 0.502, torch.float16: 6e-4, torch.bfloat16: 5e-3, torch.float32: 1e-5, torch.float64: 1e-9}


@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    batch=st.integers(1, 4),
    channels=st.sampled_from([1, 2, 3, 4]),
    dtype=st.sampled_from(list(TOLERANCE)),
    flow=st.sampled_from([0, 2, 4, 7]),
    color=st.sampled_from([0, 1, 4]),
    smooth=st.booleans(),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    still=st.sampled_from([(), (0,), (0, 1, 2, 3)]),
)
@settings(max_examples=150, deadline=None)
def test_it_is_the_plain_path(size, batch, channels, dtype, flow, color, smooth, layout, still):
    of = torch.float64 if dtype == torch.float64 else torch.float32
    draw = drawn(batch, channels, size, flow=flow, color=color, smooth=smooth, dtype=of)
    still = [k for k in still if k < batch]
    for field in draw[1:3]:
        if field is not None:
            field[still] = 0
    x = images(batch, channels, size, dtype).contiguous(memory_format=layout)
    out, kept = draw.apply(x), x.clone()
    assert (out.dtype, out.shape) == (dtype, x.shape)
    torch.testing.assert_close(out.double(), plain(draw, x), atol=TOLERANCE[dtype] * (1 + 0.001 * max(size)), rtol=0)
    assert torch.equal(x, kept)
    assert torch.equal(out[still], x[still])  # to the last bit


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_batches_of_several_chunks_equal_the_plain_path(channels, dtype):
    size = (32, 32)
    batch = 2 * CHUNK // 32**2 + 3
    draw = drawn(batch, channels, size)
    draw.coarse_flow[::5] = 0
    x = images(batch, channels, size, dtype)
    torch.testing.assert_close(draw.apply(x).double(), plain(draw, x), atol=TOLERANCE[dtype], rtol=0)


STATISTICS = [((0.5,), (0.25,)), ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)), ((0.5,), (0.2, 0.25, 0.3))]


@pytest.mark.parametrize(("mean", "std"), STATISTICS)
@pytest.mark.parametrize("color", [0, 1, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_unnormalized_draw_does_to_images_what_the_draw_does_to_normalized_ones(mean, std, color, channels):
    m, s = (torch.tensor(v)[:channels, None, None] for v in (mean, std))
    mean, std = mean[:channels], std[:channels]
    bounds = tuple((-m / s).flatten().tolist()), tuple(((1 - m) / s).flatten().tolist())
    draw = drawn(5, channels, (20, 24), color=color, bounds=bounds)
    x = images(5, channels, (20, 24))
    expected = draw.apply((x - m) / s) * s + m
    own = draw.unnormalized(mean, std, channels)
    torch.testing.assert_close(own.apply(x), expected, atol=1e-5, rtol=0)
    levels = (255 * x).to(torch.uint8)
    assert (own.apply(levels) - 255 * own.apply(levels / 255)).abs().max() <= 0.51
    with pytest.raises(TypeError, match="normalize them"):
        draw.apply(levels)


def test_values_outside_the_bounds_stay_where_the_image_has_them():
    draw = drawn(3, 3, (16, 16), flow=2)
    x = images(3, 3, (16, 16))
    x[1] = 3 * x[1] - 1
    out = draw.apply(x)
    assert out[[0, 2]].min() >= 0
    assert out[[0, 2]].max() <= 1
    torch.testing.assert_close(out.double(), plain(draw, x), atol=1e-5, rtol=0)
    assert out[1].min() < 0


def test_gradients_take_the_plain_path():
    draw, x = drawn(2, 3, (16, 16)), images(2, 3, (16, 16)).requires_grad_()
    out = draw.apply(x)
    assert out.requires_grad
    torch.testing.assert_close(out.detach(), draw.apply(x.detach()), atol=1e-5, rtol=0)
