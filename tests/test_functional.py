"""Geometry and color against independent formulas, in float64 where possible."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from learned_aug import functional as fn

SIZES = [(28, 28), (32, 32), (33, 47), (224, 224), (1, 1), (1, 9)]


def images(*shape, dtype=torch.float32, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def smooth_flow(batch, height, width, amplitude, seed=0, points=4, dtype=torch.float64):
    coarse = torch.randn(batch, 2, points, points, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return fn.resize_field(coarse, (height, width)) * amplitude


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zero_fields_leave_the_image_unchanged_to_the_last_bit(size, dtype):
    x = images(2, 3, *size, dtype=dtype)
    flow = fn.flow_field(torch.zeros(2, 4, *size), torch.zeros(2, 2, *size))
    out = fn.recolor(fn.warp(x, fn.smooth(flow)), torch.zeros(2, 12, *size))
    assert torch.equal(out.to(dtype), x)
    assert fn.warp(x, flow).dtype == dtype


def test_a_still_sample_is_exact_beside_a_moving_one():
    x, flow = images(2, 3, 224, 224), torch.zeros(2, 2, 4, 4)
    flow[1] = 3
    out = fn.warp(x, flow)
    assert torch.equal(out[0], x[0])
    torch.testing.assert_close(out[1, :, :-3, :-3], x[1, :, 3:, 3:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(28, 28), (33, 47), (224, 224)])
@pytest.mark.parametrize(("i", "j"), [(2, 0), (0, 3), (-1, 2)])
def test_constant_bias_shifts_by_as_many_pixels_rows_first(size, i, j):
    x, zero = images(1, 3, *size, dtype=torch.float64), torch.zeros(1, 4, *size, dtype=torch.float64)
    bias = torch.tensor([i, j], dtype=torch.float64)[None, :, None, None].expand(1, 2, *size)
    out = fn.warp(x, fn.flow_field(zero, bias))
    expected = F.pad(x, (3, 3, 3, 3), mode="replicate")[..., 3 + i : 3 + i + size[0], 3 + j : 3 + j + size[1]]
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [(28, 28), (33, 47), (224, 224)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_fields_equal_affine_grid_and_grid_sample(size, dtype):
    height, width = size
    # A smooth image: grid_sample's own coordinates are off by 1e-5 px in float32.
    x = fn.resize_field(images(2, 3, 6, 6, dtype=dtype), size)
    weight = torch.tensor([[0.1, -0.2, 0.15, 0.05]] * 2, dtype=dtype)
    bias = torch.tensor([[1.5, -0.7]] * 2, dtype=dtype)
    constant = [t[..., None, None].expand(-1, -1, *size) for t in (weight, bias)]
    ii, ij, ji, jj = weight[0].tolist()
    bi, bj = bias[0].tolist()
    theta = [[1 + jj, ji * height / width, 2 * bj / width], [ij * width / height, 1 + ii, 2 * bi / height]]
    grid = F.affine_grid(torch.tensor([theta] * 2, dtype=dtype), [2, 3, *size], align_corners=False)
    expected = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(fn.warp(x, fn.flow_field(*constant)), expected, atol=1e-5, rtol=0)
    coarse = [t[..., :2, :2] for t in constant]
    torch.testing.assert_close(fn.warp(x, fn.flow_field(*coarse, size)), expected, atol=1e-5, rtol=0)


def test_sampling_grid_is_equation_20_in_grid_sample_units():
    weight, bias = torch.randn(1, 4, 5, 7, dtype=torch.float64), torch.randn(1, 2, 5, 7, dtype=torch.float64)
    grid = fn.sampling_grid(fn.flow_field(weight, bias))
    for i, j in itertools.product(range(5), range(7)):
        q = torch.tensor([i - 2.0, j - 3.0], dtype=torch.float64)
        s = weight[0, :, i, j].view(2, 2) @ q + bias[0, :, i, j] + torch.tensor([i, j])
        expected = torch.stack([(2 * s[1] + 1) / 7 - 1, (2 * s[0] + 1) / 5 - 1])
        torch.testing.assert_close(grid[0, i, j], expected)


@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_smooth_is_average_pooling_with_replicated_borders(window):
    x = images(2, 3, 9, 8, dtype=torch.float64)
    padded = F.pad(x, ((window - 1) // 2, window // 2) * 2, mode="replicate")
    torch.testing.assert_close(fn.smooth(x, window), F.avg_pool2d(padded, window, stride=1))


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (32, 32), (4, 64)])
def test_resize_field_is_bilinear_with_border_on_border(size):
    x = images(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(fn.resize_field(x, size), F.interpolate(x, size, mode="bilinear", align_corners=True))


def test_resize_field_keeps_float32_under_autocast():
    x = images(1, 2, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fn.resize_field(x, (20, 20)), fn.resize_field(x.float(), (20, 20)))
        out = fn.resize_field(x, (20, 20))
    torch.testing.assert_close(out, fn.resize_field(x, (20, 20)), atol=1e-6, rtol=0)


def test_a_coarse_flow_warps_as_its_interpolation():
    x, coarse = images(2, 3, 40, 30), torch.randn(2, 2, 4, 4)
    torch.testing.assert_close(fn.warp(x, coarse), fn.warp(x, fn.resize_field(coarse, (40, 30))), atol=1e-5, rtol=0)


def test_bfloat16_images_are_sampled_at_float32_coordinates():
    x = images(1, 3, 224, 224, dtype=torch.bfloat16)
    flow = torch.full((1, 2, 224, 224), 1.0)
    # One unit in the last place of a bfloat16; a coordinate off by .2 px would give .2.
    torch.testing.assert_close(fn.warp(x, flow)[..., :-1, :-1], x[..., 1:, 1:], atol=2**-8, rtol=0)


def test_recolor_is_a_matrix_per_pixel():
    x, weight, bias = images(2, 3, 5, 4), torch.randn(2, 9, 5, 4), torch.randn(2, 3, 5, 4)
    expected = x + bias + torch.einsum("bocij,bcij->boij", weight.unflatten(1, (3, 3)), x)
    torch.testing.assert_close(fn.recolor(x, torch.cat([weight, bias], 1)), expected)


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_recolor_of_other_channels_is_a_gain_and_an_offset_each(channels):
    x, gain, offset = images(2, channels, 5, 4), torch.randn(2, channels, 5, 4), torch.randn(2, channels, 5, 4)
    torch.testing.assert_close(fn.recolor(x, torch.cat([gain, offset], 1)), x * (1 + gain) + offset)


@pytest.mark.parametrize("points", [(1, 1), (4, 4), (9, 11)])
@pytest.mark.parametrize("channels", [1, 3])
def test_recolor_interpolates_coarse_filters(points, channels):
    x, color = images(2, channels, 9, 11), torch.randn(2, 12 if channels == 3 else 2 * channels, *points)
    dense = fn.recolor(x, fn.resize_field(color, (9, 11)))
    torch.testing.assert_close(fn.recolor(x, color), dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_zero_filters_give_the_image_back_to_the_last_bit(channels):
    x = images(2, channels, 9, 11)
    for points in ((1, 1), (4, 4)):
        color = torch.zeros(2, 12 if channels == 3 else 2 * channels, *points)
        assert torch.equal(fn.recolor(x, color), x)


@pytest.mark.parametrize("points", [2, 3, 4, 7])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (1, 5)])
def test_splines_keep_constants_and_straight_lines_and_the_border_points(points, size):
    y, x = torch.meshgrid(*(torch.linspace(0, 1, points, dtype=torch.float64),) * 2, indexing="ij")
    line = (3 + 2 * x - y)[None, None]
    expected = F.interpolate(line, size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(fn.resize_field(line, size, smooth=True), expected)
    free = torch.randn(1, 2, points, points, dtype=torch.float64)
    wide = fn.resize_field(free, (41, 41), smooth=True)
    torch.testing.assert_close(wide[..., [0, 0, -1, -1], [0, -1, 0, -1]], free[..., [0, 0, -1, -1], [0, -1, 0, -1]])


def test_splines_have_no_kinks_where_linear_interpolation_has():
    free = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    bends = [fn.resize_field(free, (401, 401), smooth=smooth).diff(n=2, dim=-1).abs().max() for smooth in (0, 1)]
    assert bends[1] < 0.05 * bends[0]


def test_an_affine_flow_is_its_generators_exponential_with_an_exact_shift():
    size = (33, 33)
    still = torch.zeros(1, 6, dtype=torch.float64)
    assert not fn.affine_flow(still, (2, 2), size).any()
    shift = still.clone()
    shift[:, 4], shift[:, 5] = 3.0, -2.0  # (i, j), pixels
    flow = fn.affine_flow(shift, (3, 3), size)
    assert (flow[:, 0] == -2).all()
    assert (flow[:, 1] == 3).all()
    angle = 0.3
    turn = still.clone()
    turn[:, 1], turn[:, 2] = -angle, angle
    flow = fn.affine_flow(turn, (33, 33), size)
    y, x = torch.meshgrid(*(torch.arange(33, dtype=torch.float64) - 16,) * 2, indexing="ij")
    lengths = [(y**2 + x**2).sqrt(), ((y + flow[0, 1]) ** 2 + (x + flow[0, 0]) ** 2).sqrt()]
    torch.testing.assert_close(*lengths, rtol=1e-4, atol=1e-9)  # a rotation keeps lengths; four terms of the series


@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_gradients_of_warp_and_recolor_pass_gradcheck(scale):
    x = images(2, 3, 5, 6, dtype=torch.float64).requires_grad_()
    # Off the pixel centers, where bilinear sampling has kinks; 0 checks the exact identity's gradient to the image.
    flow = (torch.rand(2, 2, 5, 6, dtype=torch.float64) * 0.5 + 0.2) * scale
    assert torch.autograd.gradcheck(lambda x: fn.warp(x, flow), x)
    if scale:
        assert torch.autograd.gradcheck(lambda d: fn.warp(x.detach(), d), flow.requires_grad_())
    for points in ((1, 1), (3, 2), (5, 6)):
        color = torch.randn(2, 12, *points, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(fn.recolor, (x, color))


def test_a_still_sample_has_the_gradient_of_its_flow():
    x = F.interpolate(images(1, 1, 3, 3, dtype=torch.float64), (16, 16), mode="bilinear", align_corners=True)
    still, almost = (torch.full((1, 2, 16, 16), v, dtype=torch.float64).requires_grad_() for v in (0.0, 1e-9))
    for flow in (still, almost):
        fn.warp(x, flow).square().sum().backward()
    # Bilinear slopes differ left and right of a pixel center; 1e-9 is right of it, and 0 counts as right of it too.
    torch.testing.assert_close(still.grad[..., 1:-1, 1:-1], almost.grad[..., 1:-1, 1:-1], atol=1e-6, rtol=1e-6)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([torch.bool, torch.uint8, torch.int64, torch.float64]))
@settings(max_examples=25, deadline=None)
def test_masks_take_the_nearest_pixel_for_every_dtype(height, width, dtype):
    masks = torch.randint(0, 2 if dtype == torch.bool else 200, (2, 3, height, width)).to(dtype)
    flow = smooth_flow(2, height, width, 2.0)
    out = fn.warp_mask(masks, flow)
    assert out.dtype == dtype
    for b, i, j in itertools.product(range(2), range(0, height, 7), range(0, width, 7)):
        y = min(max(round(i + float(flow[b, 1, i, j])), 0), height - 1)
        x = min(max(round(j + float(flow[b, 0, i, j])), 0), width - 1)
        assert torch.equal(out[b, :, i, j], masks[b, :, y, x])
    assert torch.equal(fn.warp_mask(masks, torch.zeros(2, 2, height, width)), masks)


def test_huge_class_numbers_in_masks_survive():
    masks = torch.full((1, 4, 4), 2**60 + 1)
    assert torch.equal(fn.warp_mask(masks, torch.ones(1, 2, 4, 4)), masks)


def source_of(flow, q):
    """s(q) by grid_sample: independent of the inversion's own look-up."""
    height, width = flow.shape[-2:]
    grid = torch.stack([(2 * q[..., 0] + 1) / width - 1, (2 * q[..., 1] + 1) / height - 1], dim=-1)
    d = F.grid_sample(flow, grid[:, None], padding_mode="border", align_corners=False)[:, :, 0]
    return q + d.mT


@given(st.integers(8, 120), st.integers(8, 120), st.floats(0.0, 0.06), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_points_are_inverted_exactly_on_smooth_flows(height, width, amplitude, seed):
    flow = smooth_flow(1, height, width, amplitude * min(height, width) / 3, seed)
    inner = torch.rand(1, 30, 2, dtype=torch.float64) * 0.5 + 0.25
    points = inner * torch.tensor([width - 1, height - 1])
    q, residual = fn.warp_points(points, flow)
    assert residual.max() < 1e-3
    inside = (q >= 0).all(-1) & (q <= torch.tensor([width - 1, height - 1])).all(-1)
    assert (source_of(flow, q) - points).norm(dim=-1)[inside].max() < 0.05


@pytest.mark.parametrize("degrees", [5, 60, 179])
def test_points_follow_large_rotations(degrees):
    angle = math.radians(degrees)
    c, s = math.cos(angle), math.sin(angle)
    # Rows first: s(q) - center = R (q - center).
    weight = torch.tensor([[c - 1, s, -s, c - 1]], dtype=torch.float64)[..., None, None].expand(1, 4, 65, 65)
    flow = fn.flow_field(weight, torch.zeros(1, 2, 65, 65, dtype=torch.float64))
    offsets = torch.tensor([[[10.0, 0.0], [0.0, 15.0], [-7.5, 3.25]]], dtype=torch.float64)
    q, residual = fn.warp_points(32 + offsets, flow)
    x, y = offsets.unbind(-1)
    expected = 32 + torch.stack([c * x + s * y, c * y - s * x], dim=-1)  # the inverse rotation, in (x, y)
    torch.testing.assert_close(q, expected, atol=1e-4, rtol=0)
    assert residual.max() < 1e-3


def test_points_follow_a_mirror():
    x = torch.arange(33, dtype=torch.float64).expand(33, 33)
    flow = torch.stack([32 - 2 * x, torch.zeros_like(x)])[None]
    points = torch.tensor([[[3.0, 5.0], [30.0, 20.0]]], dtype=torch.float64)
    q, residual = fn.warp_points(points, flow)
    torch.testing.assert_close(q[..., 0], 32 - points[..., 0], atol=1e-3, rtol=0)
    torch.testing.assert_close(q[..., 1], points[..., 1], atol=1e-3, rtol=0)
    assert residual.max() < 1e-3


def test_a_sample_that_folds_leaves_the_others_of_its_batch_where_they_are():
    mild, folded = smooth_flow(1, 48, 48, 1.5), smooth_flow(1, 48, 48, 40.0, points=9)
    points = torch.rand(2, 300, 2, dtype=torch.float64) * 47
    q, residual = fn.warp_points(points, torch.cat([folded, mild]))
    alone, _ = fn.warp_points(points[1:], mild)
    assert residual[0].max() > 0.5 > 1e-3 > residual[1].max()
    torch.testing.assert_close(q[1:], alone, atol=2e-3, rtol=0)


def test_what_leaves_the_canvas_stays_outside():
    flow = torch.full((1, 2, 20, 20), 6.0)
    q, residual = fn.warp_points(torch.tensor([[[2.0, 3.0], [10.0, 12.0]]]), flow)
    torch.testing.assert_close(q, torch.tensor([[[-4.0, -3.0], [4.0, 6.0]]]))
    assert residual.max() < 1e-3


def test_where_the_flow_folds_the_residual_is_true():
    flow = smooth_flow(1, 48, 48, 40.0, points=9)
    points = torch.rand(1, 500, 2, dtype=torch.float64) * 47
    q, residual = fn.warp_points(points, flow)
    inside = ((q >= 0) & (q <= 47)).all(-1)
    true = (source_of(flow, q) - points).norm(dim=-1)
    torch.testing.assert_close(residual[inside], true[inside], atol=1e-9, rtol=0)
    assert residual.max() > 0.5  # some points are not found, and it shows
    assert residual.median() < 1e-3


FINE = 64  # points per pixel of the dense ground truth


def dense_extent(box, flow, axes):
    """Extent along two axes of all output points, 1/64 px apart, whose source lies in a box; edge coordinates."""
    height, width = flow.shape[-2:]
    size = (height - 1) * FINE + 1, (width - 1) * FINE + 1
    d = F.interpolate(flow, size, mode="bilinear", align_corners=True)[0]
    y, x = (torch.arange(n, dtype=flow.dtype) / FINE + 0.5 for n in size)
    s = d[0] + x, d[1] + y[:, None]
    inside = (s[0] >= box[0]) & (s[0] <= box[2]) & (s[1] >= box[1]) & (s[1] <= box[3])
    assert inside[1:-1, 1:-1].sum() == inside.sum()  # all of it is in view
    i, j = inside.nonzero(as_tuple=True)
    along = torch.stack([x[j], y[i]], dim=-1) @ axes
    return torch.cat([along.amin(0), along.amax(0)])


@pytest.mark.parametrize("seed", range(4))
def test_boxes_fit_the_dense_ground_truth_to_a_twentieth_of_a_pixel(seed):
    flow = smooth_flow(1, 40, 48, 1.5, seed)
    boxes = torch.tensor([[[11.0, 9.0, 36.0, 30.0], [20.0, 16.0, 26.0, 19.0]]], dtype=torch.float64)
    corners = boxes[..., [0, 1, 2, 1, 2, 3, 0, 3]].unflatten(-1, (4, 2))
    out, residual = fn.warp_boxes(boxes, flow)
    rotated, rotated_residual = fn.warp_rotated_boxes(corners, flow)
    assert max(residual.max(), rotated_residual.max()) < 1e-3
    for box, upright, (one, two, three, four) in zip(boxes[0], out[0], rotated[0], strict=True):
        torch.testing.assert_close(
            upright, dense_extent(box, flow, torch.eye(2, dtype=torch.float64)), atol=0.05, rtol=0
        )
        axes = torch.stack([two - one, four - one], dim=-1)
        axes = axes / axes.norm(dim=0)
        sides = torch.cat([one @ axes, three @ axes])
        torch.testing.assert_close(sides, dense_extent(box, flow, axes), atol=0.05, rtol=0)


def test_rotated_boxes_turn_with_a_rotation_and_fit_it_exactly():
    c, s = math.cos(0.3), math.sin(0.3)
    weight = torch.tensor([[c - 1, s, -s, c - 1]], dtype=torch.float64)[..., None, None].expand(1, 4, 64, 64)
    flow = fn.flow_field(weight, torch.zeros(1, 2, 64, 64, dtype=torch.float64))
    corners = torch.tensor([[-12.0, -6.0], [12.0, -6.0], [12.0, 6.0], [-12.0, 6.0]], dtype=torch.float64)
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    out, residual = fn.warp_rotated_boxes((32 + corners)[None, None], flow)
    torch.testing.assert_close(out[0, 0], 32 + corners @ turn, atol=1e-4, rtol=0)
    assert residual.max() < 1e-3


def test_no_boxes_and_no_points_are_fine():
    flow = torch.zeros(1, 2, 8, 8)
    assert fn.warp_boxes(torch.zeros(1, 0, 4), flow)[0].shape == (1, 0, 4)
    assert fn.warp_rotated_boxes(torch.zeros(1, 0, 4, 2), flow)[0].shape == (1, 0, 4, 2)
    assert fn.warp_points(torch.zeros(1, 0, 2), flow)[0].shape == (1, 0, 2)


def test_an_image_of_one_pixel_has_boxes():
    flow = torch.full((1, 2, 4, 4), 0.25)
    out, residual = fn.warp_boxes(torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]), flow, (1, 1), smooth=True)
    torch.testing.assert_close(out, torch.tensor([[[-0.25, -0.25, 0.75, 0.75]]]), atol=1e-3, rtol=0)
    assert residual.max() < 1e-3


def test_constants_made_under_inference_mode_serve_autograd_later():
    with torch.inference_mode():
        fn.resize_field(torch.rand(1, 1, 3, 3), (19, 17))
    x = torch.rand(1, 1, 3, 3, requires_grad=True)
    fn.resize_field(x, (19, 17)).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    "size", [(32, 32), (64, 48), (224, 224), (16, 8), (37, 50), (28, 28), (5, 3), (1, 1), (200, 8)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 40])
def test_pooled_is_the_mean_over_equal_parts(size, dtype, batch):
    x = images(batch, 3, *size, dtype=dtype)
    kept = x.clone()
    out = fn.pooled(x, 8)
    # Every pixel becomes 8 x 8 equal ones, which every part holds a whole number of.
    fine = x.double().repeat_interleave(8, -1).repeat_interleave(8, -2)
    expected = F.avg_pool2d(fine, size)
    assert out.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=0)
    assert torch.equal(x, kept)


def test_pooled_has_gradients():
    x = images(2, 2, 16, 12, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: fn.pooled(x, 4), x)
    assert torch.autograd.gradcheck(lambda x: fn.pooled(x, 5), x)


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("size", [64, 224, 640])
@pytest.mark.parametrize("amount", [0.02, 0.05])
def test_boxes_equal_points_of_their_edges_a_tenth_of_a_pixel_apart(smooth, size, amount):
    torch.manual_seed(size)
    g = torch.linspace(-0.5, 0.5, 4)
    plane = torch.stack([g.repeat(4), g.repeat_interleave(4), torch.ones(16)])
    coarse = ((torch.randn(1, 2, 3) * 0.15 @ plane).view(1, 2, 4, 4) + torch.randn(1, 2, 4, 4) * amount) * size
    flow = fn.resize_field(coarse, (size, size), smooth=smooth)
    center, side = torch.rand(30, 2) * size, torch.rand(30, 2) * size * 0.5
    boxes = torch.cat([center - side / 2, center + side / 2], 1).clamp(0, size)[None]
    out, residual = fn.warp_boxes(boxes, flow)
    again = fn.warp_boxes(boxes, coarse, (size, size), smooth=smooth)[0]
    good = residual[0] < 0.01
    assert good.sum() > 15
    torch.testing.assert_close(again[0, good], out[0, good], atol=0.04, rtol=0)
    t = torch.linspace(0, 1, 10 * size)
    for (x1, y1, x2, y2), box in zip(boxes[0, good][:12], out[0, good][:12], strict=True):
        x, y = torch.lerp(x1, x2, t), torch.lerp(y1, y2, t)
        edges = [(x, y1.expand_as(t)), (x, y2.expand_as(t)), (x1.expand_as(t), y), (x2.expand_as(t), y)]
        edge = torch.cat([torch.stack(e, dim=1) for e in edges])[None]
        q, missed = fn.warp_points(edge - 0.5, flow)
        if missed.max() < 0.01:
            truth = torch.cat([q[0].amin(0), q[0].amax(0)]) + 0.5
            torch.testing.assert_close(box, truth, atol=0.05, rtol=0)
