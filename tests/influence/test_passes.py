"""Passes through a borrowed model: gradients that reach the images, and images that stay as they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import learned_aug
from learned_aug.influence.head import HeadTap, borrowed, check_differentiable
from learned_aug.influence.layer import find_head
from tests.fit.test_models import photos, tiny


class Preceded(nn.Module):
    """A small classifier after a function of its images."""

    def __init__(self, before: Callable[[Tensor], Tensor], whole_body: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.whole_body = before, whole_body
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.fc = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.whole_body:
            return self.fc(self.before(self.body(x)))  # type: ignore[no-any-return]
        return self.fc(self.body(self.before(x)))  # type: ignore[no-any-return]


class NoGrad(Preceded):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.body(x)
        return self.fc(h)  # type: ignore[no-any-return]


class Inference(Preceded):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            h = self.body(x)
        return self.fc(h)  # type: ignore[no-any-return]


CUT: dict[str, Callable[[], nn.Module]] = {
    "no_grad": lambda: NoGrad(nn.Identity()),
    "inference_mode": lambda: Inference(nn.Identity()),
    "features detached": lambda: Preceded(lambda h: h.detach(), whole_body=True),
    "images detached": lambda: Preceded(lambda x: x.detach()),
    "through numpy": lambda: Preceded(lambda x: torch.from_numpy(x.detach().numpy().copy())),
    "thresholded": lambda: Preceded(lambda x: (x > 0.5).float()),
    "through integers": lambda: Preceded(lambda x: (255 * x).to(torch.uint8).float() / 255),
}


@pytest.mark.parametrize("name", CUT)
def test_model_that_cuts_the_graph_is_refused_before_any_event(name: str) -> None:
    events: list[object] = []
    with pytest.raises(ValueError, match=r"features must depend on the images by autograd, got none.*no_grad"):
        learned_aug.fit(CUT[name](), *photos(16), config=tiny(), progress=False, on_event=events.append)
    assert events == []


ZERO: dict[str, Callable[[Tensor], Tensor]] = {
    "rounded": lambda x: (255 * x).round() / 255,
    "sign": lambda x: (x - 0.5).sign(),
    "clamped away": lambda x: x.clamp(2.0, 3.0),
}


@pytest.mark.parametrize("name", ZERO)
def test_gradient_that_is_zero_is_warned_of_before_any_event(name: str) -> None:
    model = Preceded(ZERO[name])
    with (
        borrowed(model),
        HeadTap(model, find_head(model)) as tap,
        pytest.warns(UserWarning, match="gradient of the model.s features with respect to its images is zero"),
    ):
        check_differentiable(tap, photos(16)[0].tensors[0])


FINE: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: Preceded(nn.Identity()),
    "frozen": lambda: Preceded(nn.Identity()).requires_grad_(False),
    "a part detached": lambda: Preceded(lambda x: x + x.mean(1, keepdim=True).detach()),
    "straight-through rounding": lambda: Preceded(lambda x: x + ((255 * x).round() / 255 - x).detach()),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", FINE)
def test_gradients_that_pass_are_accepted_in_silence_under_no_grad_too(name: str, grad: bool) -> None:
    model = FINE[name]()
    with warnings.catch_warnings(), borrowed(model), HeadTap(model, find_head(model)) as tap:
        warnings.simplefilter("error")
        with torch.set_grad_enabled(grad):
            check_differentiable(tap, photos(16)[0].tensors[0])


IN_PLACE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "clamp_": (lambda x: x.clamp_(0.4, 0.6), lambda x: x.clamp(0.4, 0.6)),
    "normalized": (lambda x: x.sub_(0.5).div_(0.25), lambda x: x.sub(0.5).div(0.25)),
    "scaled": (lambda x: x.mul_(2).add_(-1), lambda x: 2 * x - 1),
    "activation": (nn.ReLU(inplace=True), nn.ReLU()),
    "one pixel": (
        lambda x: x.index_fill_(3, torch.tensor([0]), 0.0),
        lambda x: x.index_fill(3, torch.tensor([0]), 0.0),
    ),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_model_that_writes_to_its_images_gets_a_copy_and_fits_as_the_one_that_does_not(name: str) -> None:
    results = []
    for before in IN_PLACE[name]:
        data = photos(16)
        kept = [part.tensors[0].clone() for part in data]
        with pytest.warns(UserWarning, match="val has 16 images"):
            results.append(
                learned_aug.fit(Preceded(before), *data, baseline=lambda x: x.flip(-1), config=tiny(), progress=False)
            )
        assert all(torch.equal(part.tensors[0], images) for part, images in zip(data, kept, strict=True))
    one, two = results
    assert torch.equal(one.solution.value, two.solution.value)
    assert one.diagnostics == two.diagnostics
    states = one.fitted.state_dict(), two.fitted.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", IN_PLACE)
def test_images_with_a_gradient_may_be_written_to_by_the_model(name: str) -> None:
    gradients = []
    for before in IN_PLACE[name]:
        model = Preceded(before)
        x = photos(16)[0].tensors[0].clone().requires_grad_()
        with borrowed(model), HeadTap(model, find_head(model)) as tap:
            tap(x)[1].square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(gradients[0], gradients[1])
