"""Heads whose weight or bias may not take any value: refused, with what ties them and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import learned_aug
from learned_aug.influence.head import HeadTap, borrowed
from learned_aug.influence.layer import find_head
from tests.fit.test_models import photos, tiny

CLASSES, DIM = 4, 32


def model(head: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    head = nn.Linear(DIM, CLASSES) if head is None else head
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), head)


def with_head(change: Callable[[nn.Linear], object]) -> nn.Module:
    made = model()
    change(made[-1])
    return made


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


def tied_layers() -> nn.Module:
    made = model()
    made.insert(4, nn.Linear(DIM, DIM))
    made[-1] = nn.Linear(DIM, DIM)
    made[-1].weight = made[4].weight
    return made


def view_of_another() -> nn.Module:
    made = model()
    made.insert(4, nn.Linear(DIM, DIM))
    made[-1].weight = nn.Parameter(made[4].weight.detach()[:CLASSES])
    return made


def tied_bias() -> nn.Module:
    made = model()
    holder = nn.Identity()
    holder.shift = made[-1].bias
    made.insert(0, holder)
    return made


def values_that_share_memory(head: nn.Linear) -> None:
    head.weight = nn.Parameter(torch.randn(1, DIM).expand(CLASSES, DIM))


def bias_within_the_weight(head: nn.Linear) -> None:
    head.bias = nn.Parameter(head.weight.detach()[:, 0])


def prototypes() -> nn.Module:
    made = model()
    made.register_buffer("prototypes", made[-1].weight.data)
    return made


def legacy_spectral_norm(head: nn.Linear) -> None:
    torch.nn.utils.spectral_norm(head)


def masked_gradient(head: nn.Linear) -> None:
    head.weight.register_hook(lambda g: g * (torch.arange(DIM) < 3))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "pruned weight": (
        lambda: with_head(lambda h: prune.l1_unstructured(h, "weight", 0.8)),
        "weight must be free to move, got one that a hook prunes at each pass.*use prune.remove on a copy",
    ),
    "pruned bias": (
        lambda: with_head(lambda h: prune.random_unstructured(h, "bias", 0.5)),
        "bias must be free to move.*prunes.*prune.remove",
    ),
    "pruned rows": (
        lambda: with_head(lambda h: prune.ln_structured(h, "weight", 0.5, 2, 0)),
        "weight must be free to move.*prunes",
    ),
    "spectral norm by a hook": (
        lambda: with_head(legacy_spectral_norm),
        "weight must be free to move, got one that a hook rebuilds at each pass",
    ),
    "orthogonal": (
        lambda: with_head(parametrizations.orthogonal),
        "weight must be free to move, got one parametrized by Orthogonal.*remove_parametrizations",
    ),
    "own parametrization of the bias": (
        lambda: with_head(lambda h: parametrize.register_parametrization(h, "bias", nn.Softplus(), unsafe=True)),
        "bias must be free to move, got one parametrized by Softplus",
    ),
    "weight of another layer": (tied_layers, "weight must be its own, got one that is shared .*4.weight"),
    "view of another layer's memory": (view_of_another, "weight must be its own, got one that is shared .*4.weight"),
    "bias that another module holds": (tied_bias, "bias must be its own, got one that is shared .*0.shift"),
    "rows that are one": (lambda: with_head(values_that_share_memory), "values that share their memory, as expand"),
    "bias within the weight": (lambda: with_head(bias_within_the_weight), "values that share their memory"),
    "buffer": (prototypes, "weight must be its own, got one that is shared .*prototypes"),
    "gradient hook": (lambda: with_head(masked_gradient), "weight must be free to move, got one with a gradient hook"),
    "frozen bias": (
        lambda: with_head(lambda h: h.bias.requires_grad_(False)),
        "weight and bias must both be trained or both be frozen",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_head_that_is_not_free_is_refused_with_the_reason_and_no_event(name: str) -> None:
    make, message = REFUSED[name]
    events: list[object] = []
    with pytest.raises(ValueError, match=message):
        learned_aug.fit(make(), *photos(16), config=tiny(), progress=False, on_event=events.append)
    assert events == []


@pytest.mark.parametrize("name", ["pruned weight", "weight of another layer", "gradient hook"])
def test_a_head_asked_for_by_name_is_checked_as_the_default_one(name: str) -> None:
    make, message = REFUSED[name]
    made = make()
    path = next(path for path, module in made.named_modules() if module is made[-1])
    with pytest.raises(ValueError, match=message):
        find_head(made, path)


def test_weights_written_at_each_pass_are_refused() -> None:
    made = model()
    mask = (torch.arange(DIM) < 3).float()

    def write(module: nn.Module, args: object) -> None:
        with torch.no_grad():
            module.weight.mul_(mask)  # type: ignore[operator, union-attr]

    made[-1].register_forward_pre_hook(write)
    with pytest.raises(ValueError, match=r"writes to at each pass.*free to move"):
        learned_aug.fit(made, *photos(16), config=tiny(), progress=False)


class Masked(nn.Linear):
    """A head whose forward masks its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * (torch.arange(DIM) < 9), self.bias)


class Cosine(nn.Linear):
    """A head whose forward normalizes its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight, dim=1), self.bias)


def masked_data(head: nn.Module, module: nn.Module | None = None) -> None:
    """Masks the weight now, and by a hook at each pass, so that no pass changes a value."""
    mask = (torch.arange(DIM) < 9).float()
    head.weight.data.mul_(mask)  # type: ignore[operator, union-attr]
    (module or head).register_forward_pre_hook(lambda *_: head.weight.data.mul_(mask) is None or None)


def new_data(head: nn.Linear) -> None:
    head.register_forward_pre_hook(lambda m, _: setattr(m.weight, "data", m.weight.data * (torch.arange(DIM) < 9)))


def max_norm(head: nn.Linear) -> None:
    def write(module: nn.Linear, _: object) -> None:
        module.weight.data.div_(module.weight.data.norm(dim=1, keepdim=True).clamp(min=1.0))

    head.register_forward_pre_hook(write)


def zero_bias(head: nn.Linear) -> None:
    head.bias.data.zero_()
    head.register_forward_pre_hook(lambda m, _: m.bias.data.zero_() is None or None)


def hook_of_the_model() -> nn.Module:
    made = model()
    masked_data(made[-1], made)
    return made


def mask_after_accumulation(head: nn.Linear) -> None:
    head.weight.register_post_accumulate_grad_hook(lambda p: p.grad.mul_(torch.arange(DIM) < 9) is None or None)


def hook_that_holds_the_weight(*, writes: bool) -> nn.Module:
    """A hook of an earlier layer that knows the parameter, not the head."""
    made, mask = model(), (torch.arange(DIM) < 9).float()
    weight = made[-1].weight
    weight.data.mul_(mask)
    if writes:
        made[0].register_forward_pre_hook(lambda *_: weight.data.mul_(mask) is None or None)
    else:
        made[0].register_forward_hook(lambda m, x, out: out * weight.norm())
    return made


AT_EACH_PASS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "masked through data": (lambda: with_head(masked_data), "weight and bias must be free.*writes to them"),
    "other data": (lambda: with_head(new_data), "weight and bias must be free.*writes to them"),
    "largest norm": (lambda: with_head(max_norm), "weight and bias must be free.*writes to them"),
    "zero bias": (lambda: with_head(zero_bias), "weight and bias must be free.*writes to them"),
    "hook of the model": (hook_of_the_model, "weight and bias must be free.*writes to them"),
    "hook that holds the weight": (
        lambda: hook_that_holds_the_weight(writes=True),
        "weight and bias must be free.*writes to them",
    ),
    "features that the weight scales": (
        lambda: hook_that_holds_the_weight(writes=False),
        "a head whose weight is used before it",
    ),
    "masked in forward": (
        lambda: model(Masked(DIM, CLASSES)),
        "must be its head's logits|weight and bias must be free",
    ),
    "masked in forward, and already": (lambda: masked_already(), "weight and bias must be free.*changes them"),
    "normalized, and already": (lambda: normalized_already(), "weight and bias must be free.*changes them"),
    "gradients masked after accumulation": (lambda: with_head(mask_after_accumulation), "one with a gradient hook"),
}


def masked_already() -> nn.Module:
    made = model(Masked(DIM, CLASSES))
    made[-1].weight.data.mul_(torch.arange(DIM) < 9)  # type: ignore[operator, union-attr]
    return made


def normalized_already() -> nn.Module:
    made = model(Cosine(DIM, CLASSES))
    made[-1].weight.data.copy_(F.normalize(made[-1].weight.data, dim=1))  # type: ignore[operator, union-attr, arg-type]
    return made


@pytest.mark.parametrize("name", AT_EACH_PASS)
def test_head_that_is_changed_at_each_pass_is_refused(name: str) -> None:
    make, message = AT_EACH_PASS[name]
    made = make()
    events: list[object] = []
    with pytest.raises(ValueError, match=message):
        learned_aug.fit(made, *photos(16), config=tiny(), progress=False, on_event=events.append)
    assert events == []
    train, val = photos(16)
    with pytest.raises(ValueError, match=message):
        learned_aug.SteeredDraws(made, by="influence", train=train, val=val, warmup=0)(*train[:8])


FREE: dict[str, Callable[[], nn.Module]] = {
    "plain": model,
    "double precision": lambda: model().double(),
    "a hook that only looks": lambda: with_head(lambda h: h.register_forward_pre_hook(lambda *_: None)),
    "frozen": lambda: model().requires_grad_(False),
    "weight norm": lambda: with_head(parametrizations.weight_norm),
    "weight norm by a hook": lambda: with_head(lambda h: torch.nn.utils.weight_norm(h)),
    "pruned and made permanent": lambda: with_head(
        lambda h: (prune.l1_unstructured(h, "weight", 0.8), prune.remove(h, "weight"))
    ),
    "pruned elsewhere": lambda: nn.Sequential(prune.l1_unstructured(nn.Conv2d(3, 3, 1), "weight", 0.5), *model()),
    "tied layers elsewhere": lambda: nn.Sequential(*(layer := nn.Conv2d(3, 3, 1), layer), *model()),
    "no bias": lambda: model(nn.Linear(DIM, CLASSES, bias=False)),
    "held twice": lambda: _held_twice(),
}


def _held_twice() -> nn.Module:
    made = model()
    made.fc = made[-1]  # under a second name, but one module
    made.forward = lambda x: nn.Sequential(*list(made)[:5])(x)  # type: ignore[method-assign]
    return made


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", FREE)
def test_free_heads_are_accepted_and_give_their_logits(name: str) -> None:
    made = FREE[name]().eval()
    head = find_head(made)
    x = photos(16)[0].tensors[0].to(head.weight.dtype)
    with borrowed(made), HeadTap(made, head) as tap, torch.no_grad():
        features, logits = tap(x)
        torch.testing.assert_close(F.linear(features, head.weight, head.bias), logits, rtol=1e-4, atol=1e-5)


def test_a_head_with_nan_is_called_one_that_diverged() -> None:
    made = model()
    with torch.no_grad():
        made[-1].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="must be finite, got NaN or infinity: the training has diverged"):
        learned_aug.fit(made, *photos(16), config=tiny(), progress=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("output", [lambda y: SimpleNamespace(logits=y), lambda y: {"logits": y}, lambda y: (y, None)])
def test_a_model_that_holds_its_logits_in_an_output_is_fitted_as_one_that_returns_them(
    output: Callable[[Tensor], object],
) -> None:
    class Output(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model()

        def forward(self, images: Tensor) -> object:
            return output(self.inner(images))

    found = [
        learned_aug.fit(made, *photos(16), config=tiny(), progress=False).augmenter.state_dict()
        for made in (Output(), model())
    ]
    torch.testing.assert_close(*found, rtol=0, atol=0)
