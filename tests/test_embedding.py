"""An augmenter among other modules: generators, default dtypes, meta device, enclosing models, half precision."""

import copy

import pytest
import torch
from torch import nn

import learned_aug
from learned_aug import Augmenter, AugmenterConfig
from tests.test_augmenter import OLD, build, images, seeded

SMALL = {"size": 16, "tau_dim": 16}


def from_folder(folder):
    build(**SMALL).save_pretrained(folder)
    return lambda: Augmenter.from_pretrained(folder)


@pytest.mark.parametrize("what", ["from_pretrained", "bundled", "with a generator", "prior", "calibrate_", "drawn"])
def test_nothing_is_drawn_from_the_global_generator(what, tmp_path):
    x = images(8, AugmenterConfig(**SMALL))
    augmenter = build(**SMALL)
    work = {
        "from_pretrained": from_folder(tmp_path),
        "bundled": lambda: Augmenter.from_pretrained("mnist-cnn4"),
        "with a generator": lambda: Augmenter(AugmenterConfig(**SMALL), generator=seeded()),
        "prior": lambda: learned_aug.prior(x),
        "calibrate_": lambda: augmenter.calibrate_(x, generator=seeded()),
        "drawn": lambda: augmenter(x, generator=seeded()),
    }[what]
    if what == "bundled":
        pytest.importorskip("learned_aug.weights.registry")
        if not any(p.name == "mnist-cnn4" for p in learned_aug.list_pretrained()):
            pytest.skip("no bundled weights in this checkout")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    work()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_new_augmenter_draws_only_its_initial_weights_which_repeat_with_the_seed():
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(Augmenter(AugmenterConfig(**SMALL)).state_dict())
    same, other = (any(not torch.equal(states[0][k], s[k]) for k in s) for s in states[1:])
    assert not same
    assert other
    # As many numbers as its weights hold: torch's own initial ones are not drawn from it as well.
    torch.manual_seed(3)
    Augmenter(AugmenterConfig(**SMALL))
    after = torch.rand(())
    torch.manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        plain = Augmenter(AugmenterConfig(**SMALL), generator=seeded(9))
    learned_aug.nets.initialize(plain)
    assert torch.equal(after, torch.rand(()))


def test_the_users_model_is_the_same_with_and_without_augmentation():
    layers = []
    for augment in (False, True):
        torch.manual_seed(0)
        if augment:
            learned_aug.prior(images(8, AugmenterConfig(**SMALL)))
        layers.append(nn.Linear(8, 8).weight)
    assert torch.equal(*layers)


def test_steered_draws_make_their_prior_without_the_global_generator():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    x, y = images(8, AugmenterConfig(size=16)), torch.arange(8) % 4
    steered = learned_aug.SteeredDraws(model)
    ends = []
    for _ in range(2):  # the first call makes the prior
        torch.manual_seed(7)
        steered(x, y)
        ends.append(torch.rand(()))
    assert torch.equal(*ends)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_parameters_and_draws_are_the_same_under_any_default_dtype(dtype, tmp_path):
    expected = build(**SMALL)
    expected.save_pretrained(tmp_path)
    x = images(6, expected.config)
    torch.set_default_dtype(dtype)
    try:
        made = [
            Augmenter(expected.config, generator=seeded()),
            Augmenter.from_pretrained(tmp_path),
            learned_aug.prior(x, config=AugmenterConfig(**SMALL)),
        ]
        outs = [augmenter(x, generator=seeded(1)) for augmenter in made]
    finally:
        torch.set_default_dtype(torch.float32)
    for augmenter, out in zip(made, outs, strict=True):
        assert {t.dtype for t in augmenter.state_dict().values()} == {torch.float32}
        assert out.dtype == torch.float32
    plain = [
        Augmenter(expected.config, generator=seeded()),
        expected,
        learned_aug.prior(x, config=AugmenterConfig(**SMALL)),
    ]
    for out, augmenter in zip(outs, plain, strict=True):
        torch.testing.assert_close(out, augmenter(x, generator=seeded(1)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:val has")
def test_a_fit_is_the_same_under_another_default_dtype(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    x, y = images(64, AugmenterConfig(size=16)), torch.arange(64) % 2
    train, val = (torch.utils.data.TensorDataset(x[part], y[part]) for part in (slice(32), slice(32, 64)))
    config = learned_aug.FitConfig(maximize=learned_aug.DropoutConfig(steps=2, batch_size=8))
    expected = learned_aug.fit(model, train, val, config=config, progress=False)
    torch.set_default_dtype(dtype)
    try:
        result = learned_aug.fit(model, train, val, config=config, progress=False)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(result.solution.value, expected.solution.value, rtol=1e-4, atol=1e-6)
    for name, tensor in expected.fitted.state_dict().items():
        torch.testing.assert_close(result.fitted.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def unfreeze(model):
    for p in model.parameters():
        p.requires_grad = True


def unfreeze_encoders(model):
    for name, p in model.named_parameters():
        p.requires_grad = "encoder" in name or "fc" in name


@pytest.mark.parametrize(
    "how", [lambda m: m.requires_grad_(True), unfreeze, unfreeze_encoders, lambda m: m.train().requires_grad_()]
)
@pytest.mark.parametrize("copied", [False, True])
def test_an_enclosing_models_requires_grad_does_not_train_the_augmenter(how, copied):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.augment, self.fc = build(**SMALL), nn.Linear(3 * 256, 2)

        def forward(self, x):
            return self.fc(self.augment(x).flatten(1))

    torch.manual_seed(0)
    model = Model()
    how(model)
    model = copy.deepcopy(model) if copied else model
    before = copy.deepcopy(model.augment.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.1)
    for _ in range(2):
        loss = model(images(4, model.augment.config)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(torch.equal(before[name], t) for name, t in model.augment.state_dict().items())
    assert model.fc.weight.grad.abs().sum() > 0
    model.augment.requires_grad_(True)  # its own says that it is meant
    model(images(4, model.augment.config)).square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.augment.parameters())


def test_nor_does_it_in_compiled_code():
    model = nn.Sequential(build(**SMALL), nn.Flatten(), nn.Linear(3 * 256, 2)).requires_grad_(True)
    torch.compile(model, backend="aot_eager", fullgraph=True)(images(4, model[0].config)).sum().backward()
    assert all(p.grad is None for p in model[0].parameters())
    assert model[2].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("form", [SMALL, {**SMALL, "variant": "serial"}, {**SMALL, "fields": "pixel"}, OLD], ids=str)
@pytest.mark.parametrize("assign", [False, True])
def test_built_on_the_meta_device_and_materialized_it_draws_the_same(form, assign):
    expected = build(**form)
    with torch.device("meta"):
        augmenter = Augmenter(expected.config)
    assert all(t.is_meta for t in augmenter.state_dict().values())
    if not assign:
        augmenter.to_empty(device="cpu")
        for tensor in (*augmenter.parameters(), *augmenter.buffers()):
            tensor.fill_(float("nan"))  # as uninitialized memory may be
    augmenter.load_state_dict(expected.state_dict(), assign=assign)
    x = images(3, expected.config)
    assert torch.equal(augmenter(x, generator=seeded()), expected(x, generator=seeded()))
    assert torch.equal(copy.deepcopy(augmenter)(x, generator=seeded()), expected(x, generator=seeded()))


def test_all_that_a_draw_depends_on_is_in_the_weights_or_the_config():
    for form in (SMALL, OLD):
        augmenter = build(**form)
        buffers = {name for name, _ in augmenter.named_buffers()}
        assert buffers <= set(augmenter.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(16, 16), (24, 24), (40, 27), (64, 64), (7, 9), (1, 1)])
@pytest.mark.parametrize("form", [{}, {"fields": "pixel"}, {"variant": "serial"}, {"channels": 1}], ids=str)
def test_half_precision_augmenters_work_on_the_cpu_at_any_size(form, size, dtype):
    exact = build(**SMALL, **form)
    half = copy.deepcopy(exact).to(dtype)
    x = images(4, exact.config, size)
    noise = exact.draw_noise(4, generator=seeded())
    for given in (x.to(dtype), x):
        out = half(given, noise)
        assert out.dtype == given.dtype
        assert out.isfinite().all()
        # Parts of white noise differ little in their means, which half precision rounds.
        assert (out.float() - exact(x, noise)).abs().mean() < 0.08
        assert torch.equal(half(given, noise, strength=0.0), given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_flows_are_float32_and_close(dtype):
    exact = build(**SMALL)
    x = images(4, exact.config, (48, 48))
    noise = exact.draw_noise(4, generator=seeded())
    flow = copy.deepcopy(exact).to(dtype).augment(x.to(dtype), noise).flow
    expected = exact.augment(x, noise).flow
    assert flow.dtype == torch.float32
    assert (flow - expected).abs().mean() < 0.1 * expected.abs().mean()
