"""The batch module: draws, identity, equivalences, calibration, dtypes, compilation."""

import copy
import functools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learned_aug import Augmenter, AugmenterConfig
from learned_aug.augmenter import shrunk
from learned_aug.functional.fused import CHUNK

OLD = {"version": 1, "affine": 0.0, "warp": None, "color": None, "color_points": None, "encoder_size": 32}
OLD = {**OLD, "centered": False, "encoder": "conv"}
FORMS = [
    {},
    OLD,
    {**OLD, "channels": 1, "variant": "spatial"},
    {"affine": 0.0, "warp": 1 / 32, "color": 0.05, "color_points": None},
    {"variant": "serial"},
    {"variant": "spatial"},
    {"variant": "appearance"},
    {"pooled": True},
    {"fields": "pixel"},
    {"fields": "pixel", "variant": "serial", "pooled": True},
    {"channels": 1},
    {"channels": 5, "fields": "pixel"},
    {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3)},
    {"tau_dropout": 0.2, "control_points": 7, "size": 28},
    {"encoder": "conv"},
    {"dropout": "fixed"},
    {"dropout": "fixed", "fields": "pixel", "variant": "serial"},
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(batch, config, size=None, seed=0):
    height, width = size or (config.size, config.size)
    x = torch.rand(batch, config.channels, height, width, generator=seeded(seed))
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.mean, config.std))
    return (x - mean) / std


@functools.cache
def prototype(calibrated, config):
    augmenter = Augmenter(config, generator=seeded())
    if not calibrated:
        return augmenter
    if config.version == 1:
        return augmenter
    return augmenter.calibrate_(images(40, config), generator=seeded(1))


def build(calibrated=True, **config):
    return copy.deepcopy(prototype(calibrated, AugmenterConfig(**{"size": 32, "tau_dim": 64, **config})))


@pytest.fixture(params=FORMS, ids=str)
def augmenter(request):
    return build(**request.param)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -float("inf")])
def test_strength_that_is_not_finite_is_refused(strength):
    augmenter = build()
    with pytest.raises(ValueError, match="strength must be finite"):
        augmenter(images(2, augmenter.config), strength=strength)
    with pytest.raises(ValueError, match=r"strength must be finite, got \[1.0, "):
        augmenter(images(2, augmenter.config), strength=torch.tensor([1.0, strength]))


def test_a_trace_needs_noise_or_masks():
    augmenter = build()
    with pytest.raises(ValueError, match="got None; see draw_noise"):
        augmenter.trace(images(2, augmenter.config))


def test_a_draw_changes_the_image_and_reports_how(augmenter):
    x = images(6, augmenter.config, seed=3)
    noise = augmenter.draw_noise(6, generator=seeded(2))
    out = augmenter.augment(x, noise)
    assert (out.images - x).abs().mean() > 1e-3
    torch.testing.assert_close(out.images, augmenter(x, noise), atol=1e-5, rtol=0)
    assert (out.flow.abs().max() > 0.1) == (augmenter.config.variant != "appearance")
    assert (out.delta.abs().max() > 0.01) == augmenter.config.recolors


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (1, 1)])
@pytest.mark.parametrize("strength", [0, 0.0, torch.tensor(0.0), torch.zeros(3)])
def test_strength_zero_is_the_identity_to_the_last_bit(augmenter, size, strength):
    x = images(3, augmenter.config, size)
    assert torch.equal(augmenter(x, strength=strength), x)


def test_strength_scales_the_flow_per_sample():
    augmenter = build(variant="spatial", affine=0.0)  # the exponential of an affine map is not linear
    x = images(3, augmenter.config)
    noise = augmenter.draw_noise(3)
    full = augmenter.augment(x, noise).flow
    scaled = augmenter.augment(x, noise, strength=torch.tensor([0.0, 0.5, 2.0])).flow
    torch.testing.assert_close(scaled, full * torch.tensor([0.0, 0.5, 2.0])[:, None, None, None])


def test_batched_equals_unbatched(augmenter):
    x = images(5, augmenter.config, (40, 27))
    noise = augmenter.draw_noise(5)
    one_by_one = torch.cat([augmenter(x[k : k + 1], noise[k : k + 1]) for k in range(5)])
    # 2e-5 of the range [0, 1], before normalization: white noise changes by 1 a pixel, and products round.
    torch.testing.assert_close(augmenter(x, noise), one_by_one, atol=2e-5 / min(augmenter.config.std), rtol=0)


@pytest.mark.parametrize("form", [{}, {"variant": "spatial"}, {"variant": "appearance"}, {"fields": "pixel"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_long_batches_are_worked_in_chunks_with_the_same_result(form, dtype):
    augmenter = build(**form)
    batch = 2 * CHUNK // 32**2 + 3
    x = images(batch, augmenter.config).to(dtype)
    noise = augmenter.draw_noise(batch)
    out = augmenter(x, noise)
    assert out.dtype == dtype
    whole = augmenter.augment(x, noise).images
    torch.testing.assert_close(out, whole, atol=1e-5 if dtype != torch.bfloat16 else 0.02, rtol=0)


def test_masks_are_zero_or_one_over_keep_with_the_stated_share():
    augmenter = build(calibrated=False, tau_dropout=0.25, variant="serial")
    masks = augmenter.trace(images(500, augmenter.config), augmenter.draw_noise(500, generator=seeded())).masks
    assert masks.shape == (500, 2, 64)
    torch.testing.assert_close(masks.unique(), torch.tensor([0, 1 / 0.75]))
    assert abs((masks == 0).float().mean() - 0.25) < 0.01


def test_tau_dropout_stays_active_after_eval_and_seeds_repeat(augmenter):
    x = images(4, augmenter.config)
    augmenter.eval()
    assert not torch.equal(augmenter(x), augmenter(x))
    assert torch.equal(augmenter(x, generator=seeded(5)), augmenter(x, generator=seeded(5)))
    torch.manual_seed(7)
    first = augmenter(x)
    torch.manual_seed(7)
    assert torch.equal(augmenter.train()(x), first)


def test_each_sample_of_a_batch_gets_its_own_draw():
    augmenter = build()
    out = augmenter(images(1, augmenter.config).expand(8, -1, -1, -1))
    assert len(out.flatten(1).unique(dim=0)) == 8


def test_the_input_is_never_changed(augmenter):
    x = images(3, augmenter.config)
    before = x.clone()
    augmenter(x).add_(1)
    augmenter(x, strength=0.0).add_(1)
    assert torch.equal(x, before)


@given(
    size=st.tuples(st.integers(1, 257), st.integers(1, 257)),
    batch=st.integers(0, 2),
    channels=st.sampled_from([1, 2, 3, 4]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    fields=st.sampled_from(["grid", "pixel"]),
)
@settings(max_examples=40, deadline=None)
def test_any_size_batch_channels_dtype_and_memory_format_works(size, batch, channels, dtype, layout, fields):
    augmenter = build(calibrated=False, channels=channels, fields=fields, size=16)
    x = images(batch, augmenter.config, size).to(dtype).contiguous(memory_format=layout)
    out = augmenter(x, generator=seeded())
    assert out.shape == x.shape
    assert out.dtype == dtype
    assert out.isfinite().all()
    reference = augmenter(x.contiguous().double(), generator=seeded())
    # A flow of up to half of 257 px is known to 1e-5 of its length in float32, and white noise changes by 1 a pixel.
    tolerance = {torch.float16: 0.01, torch.bfloat16: 0.08}.get(dtype, 3e-3)
    torch.testing.assert_close(out.double(), reference, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (64, 96), (97, 130), (20, 9)])
def test_the_copy_for_the_encoder_keeps_the_mean_and_halves_exactly(size):
    x = images(2, AugmenterConfig(), size)
    small = shrunk(x, 32)
    assert small.shape == (2, 3, 32, 32)
    torch.testing.assert_close(small.mean((2, 3)), x.mean((2, 3)), atol=0.01, rtol=0)
    if size == (64, 64):
        torch.testing.assert_close(small, torch.nn.functional.avg_pool2d(x, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("encoder_size", "limit"), [(32, 0.15), (8, 0.25)])
def test_other_sizes_get_the_same_picture_at_another_resolution(encoder_size, limit):
    augmenter = build(variant="spatial", encoder_size=encoder_size)
    small = torch.nn.functional.interpolate(images(16, augmenter.config, (6, 6)), (32, 32), mode="bicubic")
    large = torch.nn.functional.interpolate(small, (96, 96), mode="bilinear", align_corners=True)
    noise = augmenter.draw_noise(16, generator=seeded(5))
    flow = torch.nn.functional.interpolate(
        augmenter.augment(small, noise).flow, (96, 96), mode="bilinear", align_corners=True
    )
    # E sees as many pixels either way; what is left is the resize's own blur.
    difference = (augmenter.augment(large, noise).flow * (31 / 95) - flow).abs().mean()
    assert difference < limit * flow.abs().mean()


def test_pooled_augmenter_is_one_affine_warp_of_each_image():
    augmenter = build(pooled=True, variant="spatial")
    flow = augmenter.augment(images(3, augmenter.config), generator=seeded()).flow
    second = flow.diff(n=2, dim=-1).abs().max(), flow.diff(n=2, dim=-2).abs().max()
    assert max(second) < 1e-5
    assert flow.abs().max() > 0.5


def test_pooled_augmenter_reaches_the_strength_of_an_unpooled_one():
    config = AugmenterConfig(pooled=True, affine=0.0, warp=0.125)
    x = images(40, config)
    augmenter = Augmenter(config, generator=seeded()).calibrate_(x, generator=seeded(1))
    one, other = (augmenter.augment(x, generator=seeded(s)).flow for s in (2, 3))
    assert (one - other).norm(dim=1).mean() == pytest.approx(4.0, rel=0.2)


def test_gradients_reach_e_g_and_the_input_only_when_asked():
    augmenter = build(centered=False)  # where it is, the last bias cancels
    x = images(3, augmenter.config)
    assert not augmenter(x).requires_grad
    x.requires_grad_()
    augmenter(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in augmenter.parameters())
    augmenter.requires_grad_()
    augmenter(x.detach()).square().sum().backward()
    for name, p in augmenter.named_parameters():
        if "keep" in name:  # whether a unit is kept has no derivative; fit.dropout takes another way
            assert p.grad is None
        else:
            assert p.grad.isfinite().all()
            assert p.grad.abs().sum() > 0


def test_gradients_agree_with_finite_differences_in_float64():
    augmenter = build(tau_dim=8, size=8).double()
    x = images(1, augmenter.config).double()
    noise = augmenter.draw_noise(1).double()
    weight = augmenter.stages[0].generator.deconvs[1].weight.requires_grad_()

    def total():
        return augmenter(x, noise).square().sum()

    (gradient,) = torch.autograd.grad(total(), weight)
    with torch.no_grad():
        direction, step = torch.randn(weight.shape, generator=seeded()).double(), 1e-6
        weight += step * direction
        up = total()
        weight -= 2 * step * direction
        slope = (up - total()) / (2 * step)
    torch.testing.assert_close(slope, (gradient * direction).sum(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_copies_give_the_same_draws(augmenter, copier):
    x = images(2, augmenter.config)
    assert torch.equal(copier(augmenter)(x, generator=seeded()), augmenter(x, generator=seeded()))


def test_weights_folder_round_trip(augmenter, tmp_path):
    augmenter.save_pretrained(tmp_path)
    loaded = Augmenter.from_pretrained(tmp_path)
    x = images(2, augmenter.config)
    assert torch.equal(loaded(x, generator=seeded()), augmenter(x, generator=seeded()))


def test_autocast_keeps_coordinates_and_stays_close():
    augmenter = build(size=64)
    x = images(4, augmenter.config)
    noise = augmenter.draw_noise(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = augmenter.augment(x, noise)
    assert out.flow.dtype == torch.float32
    exact = augmenter.augment(x, noise)
    assert (out.flow - exact.flow).abs().mean() < 0.05 * exact.flow.abs().mean()
    assert (out.images - exact.images).abs().mean() < 0.02


def test_channels_last_gives_the_same():
    augmenter = build()
    x = images(4, augmenter.config)
    noise = augmenter.draw_noise(4)
    out = augmenter(x.contiguous(memory_format=torch.channels_last), noise)
    torch.testing.assert_close(out, augmenter(x, noise), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "variant"), [("inductor", "parallel"), ("aot_eager", "serial")])
@pytest.mark.filterwarnings("default")  # the compiler's own libraries warn of their future
def test_compiles_without_graph_breaks_to_the_same_result(backend, variant):
    augmenter = build(variant=variant, fields="grid" if variant == "parallel" else "pixel")
    x = images(4, augmenter.config, (40, 40))
    noise = augmenter.draw_noise(4)
    compiled = torch.compile(augmenter, fullgraph=True, backend=backend)
    # Compiled, the images are warped before they are recolored.
    torch.testing.assert_close(compiled(x, noise), augmenter(x, noise), atol=5e-5, rtol=0)
    assert not torch.equal(compiled(x), compiled(x))
    for batch in (3, 2):  # which makes the number of samples a variable
        assert compiled(x[:batch]).shape == (batch, 3, 40, 40)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), TypeError, r"torch.uint8.*LearnedAugment"),
        ([torch.zeros(3, 32, 32)], TypeError, "list"),
        (torch.zeros(3, 32, 32), ValueError, r"images\[None\]"),
        (torch.zeros(2, 1, 32, 32), ValueError, r"\(B, 3, H, W\), got \(2, 1, 32, 32\)"),
        (torch.zeros(2, 3, 0, 32), ValueError, "got"),
        (torch.stack([torch.zeros(3, 32, 32), torch.full((3, 32, 32), torch.nan)]), ValueError, "sample 1"),
        (torch.full((1, 3, 32, 32), torch.inf), ValueError, "finite"),
    ],
)
def test_bad_images_are_refused_by_name(bad, error, message):
    with pytest.raises(error, match=message):
        build(calibrated=False)(bad)


def test_one_bad_pixel_is_found_at_any_size():
    x = torch.rand(3, 3, 200, 150)
    x[1, 2, 130, 90] = torch.nan
    with pytest.raises(ValueError, match="sample 1"):
        build(calibrated=False)(x)


@pytest.mark.parametrize("variant", ["parallel", "serial"])
def test_learned_dropout_begins_as_fixed_dropout_and_then_follows_the_image(variant):
    learned, fixed = (build(dropout=kind, variant=variant) for kind in ("learned", "fixed"))
    missing, unexpected = fixed.load_state_dict(learned.state_dict(), strict=False)
    assert not missing
    assert all("keep" in name for name in unexpected)
    x, noise = images(40, learned.config), learned.draw_noise(40, generator=seeded())
    assert torch.equal(learned(x, noise), fixed(x, noise))
    assert fixed.trace(x, noise).logits is None
    for stage in learned.stages:
        torch.nn.init.normal_(stage.encoder.keep[-1].weight, generator=seeded(1))
    trace = learned.trace(x, noise)
    assert torch.equal(trace.masks, 2 * (noise[..., :-3] < trace.logits.sigmoid()).float())
    assert trace.logits.std(0).mean() > 0.1
    assert not torch.equal(learned(x, noise), fixed(x, noise))


def test_masks_given_are_what_tau_is_multiplied_with_and_have_gradients():
    augmenter = build()
    x, noise = images(3, augmenter.config), augmenter.draw_noise(3, generator=seeded())
    trace = augmenter.trace(x, noise)
    masks = trace.masks.clone().requires_grad_()
    again = augmenter.trace(x, masks=masks, strengths=trace.strengths)
    torch.testing.assert_close(again.draw.apply(x), trace.draw.apply(x))
    again.draw.coarse_flow.square().sum().backward()
    assert (masks.grad.flatten(1).norm(dim=1) > 0).all()


def test_bad_noise_and_strengths_are_refused():
    augmenter = build(calibrated=False)
    x = images(3, augmenter.config)
    with pytest.raises(ValueError, match="draw_noise"):
        augmenter(x, torch.ones(2, 1, 64))
    with pytest.raises(ValueError, match=r"\(B, stages, 67\) = \(3, 1, 67\), got \(3, 1, 64\)"):
        augmenter(x, torch.ones(3, 1, 64))  # without the three columns of the strengths
    with pytest.raises(ValueError, match=r"\(3,\), got \(2,\)"):
        augmenter(x, strength=torch.ones(2))
    with pytest.raises(ValueError, match=r"strengths must be \(B, 3\) = \(3, 3\), got \(3, 2\)"):
        augmenter.trace(x, masks=torch.ones(3, 1, 64), strengths=torch.ones(3, 2))


def test_repr_is_short():
    assert "AugmenterConfig(channels=3" in repr(build(calibrated=False))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_cpu_equals_gpu(form):
    augmenter = build(**form)
    x = images(4, augmenter.config, (40, 27))
    noise = augmenter.draw_noise(4)
    gpu = copy.deepcopy(augmenter).cuda()
    with torch.backends.cudnn.flags(allow_tf32=False):
        out = gpu(x.cuda(), noise.cuda()).cpu()
    torch.testing.assert_close(out, augmenter(x, noise), atol=1e-4, rtol=1e-4)
    seeds = [gpu(x.cuda(), generator=seeded()).cpu(), augmenter(x, generator=seeded())]
    torch.testing.assert_close(*seeds, atol=1e-4, rtol=1e-4)
    assert torch.equal(gpu(x.cuda(), strength=0.0).cpu(), x)


@pytest.mark.parametrize("form", [{}, {"variant": "serial"}, {"pooled": True}], ids=str)
def test_fields_grow_from_coarse_to_fine_without_a_jump(form):
    augmenter = build(fields="pixel", **form)
    x, noise = images(4, augmenter.config), augmenter.draw_noise(4)
    full = augmenter.augment(x, noise).flow

    def flow(level):
        with augmenter.grown_to(level):
            return augmenter.augment(x, noise).flow

    steps = [float((flow(level) - full).norm()) for level in (2, 2.5, 3, 4, 5)]
    if not augmenter.config.pooled:
        roughness = [float(flow(level).diff(n=2, dim=-1).square().mean()) for level in (2, 3, 4, 5)]
        assert roughness == sorted(roughness)
        assert steps == sorted(steps, reverse=True)
        torch.testing.assert_close(flow(2.5), (flow(2) + flow(3)) / 2, atol=1e-4, rtol=0)
        torch.testing.assert_close(flow(2 - 1e-6 + 1), flow(3), atol=1e-3, rtol=0)
    assert torch.equal(flow(5), full)  # 32 points
    assert torch.equal(augmenter.augment(x, noise).flow, full)  # as before


def test_growth_ends_with_its_block_even_when_that_raises_and_leaves_control_grids_alone():
    augmenter, grid = build(fields="pixel"), build()
    x, noise = images(2, grid.config), grid.draw_noise(2)
    with grid.grown_to(2):
        assert torch.equal(grid(x, noise), build()(x, noise))
    with pytest.raises(KeyError), augmenter.grown_to(2):
        raise KeyError
    assert augmenter.stages[0].generator.level == float("inf")


@pytest.mark.parametrize(
    "form", [{}, {"variant": "serial"}, {"channels": 1}, {"mean": (0.5,), "std": (0.25,)}], ids=str
)
def test_values_stay_in_the_range_of_images_widened_by_the_inputs_own(form):
    augmenter = build(affine=0.0, warp=0.0, color=(0.4, 0.4), **form) if "variant" not in form else build(**form)
    x = images(64, augmenter.config)
    low, high = (torch.tensor(v)[:, None, None] for v in augmenter.config.bounds)
    out = augmenter(x, generator=seeded(1), strength=3.0)
    assert ((out >= low - 1e-6) & (out <= high + 1e-6)).all()
    assert (out == low).any()  # it was needed
    assert (out == high).any()
    wide = x.clone()
    wide[0, 0, 0, 0], wide[1, 0, 0, 0] = low.min() - 0.26, high.max() + 0.26  # as bicubic resizing leaves them
    out = augmenter(wide, generator=seeded(1), strength=3.0)
    assert out.min() >= wide.min()
    assert out.max() <= wide.max()
    assert torch.equal(augmenter(wide, strength=0.0), wide)
    # Nearly no change is nearly the input, also of what is far outside.
    torch.testing.assert_close(augmenter(5 * wide, strength=1e-6), 5 * wide, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("batch", [3, 80])
def test_a_clamped_batch_gives_no_nan_in_gamma_and_no_wrap_in_uint8(batch):
    augmenter = build(color=0.4)
    out = augmenter(images(batch, augmenter.config), generator=seeded(1), strength=2.0)
    assert out.pow(1 / 2.2).isfinite().all()
    assert torch.equal((255 * out).to(torch.uint8).float(), (255 * out).floor())


def test_a_spatial_augmenter_is_never_clamped():
    augmenter = build(variant="spatial")
    x = 100 * images(3, augmenter.config) - 50
    assert augmenter(x, generator=seeded(1)).min() < -40
