"""What SteeredDraws is given: labels, models and dtypes, refused or taken at the first batch, before the warm-up."""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from learned_aug import AugmenterConfig, DrawChoice, RetrainConfig, SteeredDraws, compare, fit, prior, retrain
from learned_aug.training.augment import Chain
from learned_aug.training.curves import strength_curves
from learned_aug.training.reader import Reader

CLASSES = 4


def photos(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(32, 3, 4, 4, generator=generator)
    return F.interpolate(small, size=(16, 16), mode="bilinear").to(dtype), torch.arange(32) % CLASSES


def small(classes=CLASSES):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 16),
        nn.Linear(16, classes),
    )


X, Y = photos()
TRAIN, VAL = (TensorDataset(*photos(seed)) for seed in (1, 2))
DATA = {"by": "influence", "train": TRAIN, "val": VAL}
LABELS = {
    "too few": (Y[:4], "labels must be one per image, 32, got"),
    "a column": (Y[:, None], r"make it one dimension with labels.flatten\(\)"),
    "one-hot integers": (F.one_hot(Y, CLASSES), r"labels.long\(\).argmax\(1\)"),
    "floats": (Y.float(), r"labels.long\(\)"),
    "regression": (Y + 0.5, "not a value to regress on"),
    "names": (["cat"] * 32, "map class names to indices"),
    "truth values": (Y > 1, r"labels.long\(\)"),
    "beyond the classes": (Y + 9, "labels must be in 0..3"),
    "from 1": (Y + 1, "seem to count from 1"),
    "several an image": (torch.ones(32, CLASSES), "pass loss="),
    "soft ones of more classes": (torch.full((32, 8), 1 / 8), "a column for each of the model's 4 classes"),
}


IMAGES = {
    "bytes": ((255 * X).byte(), TypeError, "floating batch .*got torch.uint8"),
    "a list": (list(X), TypeError, "floating batch .*got list.*torch.stack"),
    "an array": (X.numpy(), TypeError, "floating batch .*got ndarray"),
    "one image": (X[0], ValueError, r"must be \(B, C, H, W\).*images\[None\]"),
    "no pixels": (X[:, :, :0], ValueError, r"must be \(B, C, H, W\), got \(32, 3, 0, 16\)"),
    "channels last": (X.permute(0, 2, 3, 1), ValueError, r"the model does not take .*permute\(0, 3, 1, 2\)"),
}
AUGMENTER = prior(X)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize(
    "make",
    [lambda: SteeredDraws(small(), **DATA), lambda: SteeredDraws(small()), lambda: DrawChoice(small(), AUGMENTER)],
)
def test_images_that_do_not_fit_are_refused_with_the_remedy(name, make):
    images, error, message = IMAGES[name]
    with pytest.raises(error, match=message):
        make()(images, Y)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.uint16])
@pytest.mark.parametrize("data", [{}, DATA], ids=["loss", "influence"])
def test_labels_of_any_width_give_the_draws_of_int64(dtype, data):
    def drawn(labels):
        return SteeredDraws(small(), augmenter=AUGMENTER, warmup=0, period=1, **data)(X, labels)

    assert torch.equal(drawn(Y.to(dtype)), drawn(Y))


@pytest.mark.parametrize(
    "make", [lambda m: SteeredDraws(m, augmenter=AUGMENTER, warmup=0, period=1), lambda m: DrawChoice(m, AUGMENTER)]
)
def test_an_enclosing_inference_mode_changes_no_draw(make):
    model = small()
    torch.manual_seed(0)
    expected = make(model)(X, Y)
    torch.manual_seed(0)
    with torch.inference_mode():
        drawn = make(model)(X, Y)
    assert torch.equal(drawn, expected)
    assert not drawn.is_inference()


def test_a_choice_of_no_images_is_none():
    assert DrawChoice(small(), AUGMENTER)(X[:0], Y[:0]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("name", LABELS)
def test_a_choice_refuses_the_same_labels_at_its_first_batch(name):
    labels, message = LABELS[name]
    with pytest.raises(ValueError, match=message):
        DrawChoice(small(), [prior(X), prior(X, seed=1)])(X, labels)


def test_a_choice_refuses_a_model_of_one_output():
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        DrawChoice(small(1), [prior(X)])(X, torch.zeros(32, dtype=torch.long))


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("warmup", [0, 20])
def test_labels_that_do_not_fit_are_refused_at_the_first_batch(name, warmup):
    labels, message = LABELS[name]
    with pytest.raises(ValueError, match=message):
        SteeredDraws(small(), warmup=warmup)(X, labels)


@pytest.mark.parametrize("name", ["a column", "one-hot integers", "names", "floats"])
def test_influence_refuses_labels_as_the_loss_does(name):
    labels, message = LABELS[name]
    with pytest.raises(ValueError, match=message):
        SteeredDraws(small(), **DATA)(X, labels)


def test_influence_takes_soft_labels():
    soft = F.one_hot(Y, CLASSES) * 0.9 + 0.1 / CLASSES
    assert SteeredDraws(small(), warmup=0, **DATA)(X, soft).shape == X.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_soft_labels_are_followed_in_any_dtype(dtype):
    soft = F.one_hot(Y, CLASSES).to(dtype) * 0.9 + 0.1 / CLASSES
    assert SteeredDraws(small(), warmup=0)(X, soft).shape == X.shape


def test_a_later_batch_is_checked_as_the_first():
    steered = SteeredDraws(small())
    steered(X, Y)
    for labels, message in LABELS.values():
        with pytest.raises(ValueError, match=message):
            steered(X, labels)


class Part(nn.Module):
    """A model whose body is run by `body`."""

    def __init__(self, body):
        super().__init__()
        self.model, self.body = small(), body

    def forward(self, images):
        return self.model[-1](self.body(self.model[:-1], images))


def frozen(model, images):
    with torch.no_grad():
        return model(images)


def inferred(model, images):
    with torch.inference_mode():
        return model(images) + 0


CUTS = {
    "no_grad": frozen,
    "inference_mode": lambda model, images: inferred(model, images).clone(),
    "detach": lambda model, images: model(images).detach(),
    "data": lambda model, images: model(images.data),
    "NumPy": lambda model, images: model(torch.from_numpy(images.detach().numpy().copy())),
    "bytes": lambda model, images: model((images * 255).byte() / 255),
}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("options", [{}, DATA], ids=["loss", "influence"])
def test_a_model_through_which_no_gradient_passes_is_refused_at_the_first_batch(name, options):
    with pytest.raises(ValueError, match=r"by autograd, got none.*no_grad"):
        SteeredDraws(Part(CUTS[name]), **options)(X, Y)


@pytest.mark.parametrize("name", CUTS)
def test_without_steering_no_gradient_is_asked_for(name):
    assert SteeredDraws(Part(CUTS[name]), tilt=0)(X, Y).shape == X.shape


@pytest.mark.parametrize("options", [{}, DATA], ids=["loss", "influence"])
def test_a_single_output_is_refused_with_the_way_to_two(options):
    with pytest.raises(ValueError, match=r"at least 2 classes, got 1.*Linear"):
        SteeredDraws(small(1), **options)(X, Y * 0)


def test_outputs_of_another_form_need_a_loss():
    model = nn.Sequential(nn.Conv2d(3, 2, 1))
    with pytest.raises(ValueError, match=r"logits \(B, K\).*pass loss="):
        SteeredDraws(model)(X, Y)
    steered = SteeredDraws(model, warmup=0, loss=lambda out, y: out.square().flatten(1).mean(1))
    assert steered(X, Y).shape == X.shape


@pytest.mark.parametrize("of_images", [torch.float32, None], ids=["float32 images", "its own"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [{}, DATA], ids=["loss", "influence"])
def test_models_of_any_dtype_are_followed(dtype, of_images, options):
    images = X.to(of_images or dtype)
    model = small().to(dtype)
    out = SteeredDraws(model, warmup=0, period=1, share=0.5, **options)(images, Y)
    assert out.dtype == images.dtype
    assert (out != images).flatten(1).any(1).sum() == 16
    chosen = DrawChoice(model, prior(X), **options)(images, Y)
    assert chosen.dtype == images.dtype


def test_a_double_model_steers_as_a_single_one():
    drawn = [
        SteeredDraws(small().to(dtype), warmup=0, period=1, share=1)(X, Y) for dtype in (torch.float32, torch.float64)
    ]
    assert (drawn[0] - drawn[1]).abs().mean() < 0.01  # of 128 masks some lie on the edge


def cached(model):
    model.cache = model[0].weight * 2  # no leaf: deepcopy refuses it


def generator(model):
    model.source = (k for k in range(3))


UNCOPIED = {
    "pruned": lambda m: prune.l1_unstructured(m[0], "weight", 0.5),
    "parametrized": lambda m: parametrizations.orthogonal(m[4]),
    "spectral norm by a hook": lambda m: torch.nn.utils.spectral_norm(m[0]),
    "a cache that is no leaf": cached,
    "a generator": generator,
}


@pytest.mark.parametrize("name", UNCOPIED)
@pytest.mark.parametrize("options", [{}, DATA], ids=["loss", "influence"])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_models_that_cannot_be_copied_are_followed(name, options):
    model = small()
    UNCOPIED[name](model)
    model(X)  # what a forward pass leaves behind
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert SteeredDraws(model, warmup=0, period=1, **options)(X, Y).shape == X.shape
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training


class Writing(nn.Module):
    """A model that writes to what it is given."""

    def __init__(self, write):
        super().__init__()
        self.model, self.write = small(), write

    def forward(self, images):
        self.write(images)
        return self.model(images)


@pytest.mark.parametrize(
    "write", [lambda x: x.clamp_(0.4, 0.6), lambda x: x.sub_(0.5).div_(0.2), lambda x: x[:, 0].zero_()]
)
@pytest.mark.parametrize("options", [{}, DATA], ids=["loss", "influence"])
def test_a_model_that_writes_to_its_images_gets_copies(write, options):
    images = X.clone()
    out = SteeredDraws(Writing(write), warmup=0, period=1, share=0.5, **options)(images, Y)
    assert torch.equal(images, X)
    assert (out == X).flatten(1).all(1).sum() == 16  # those that are not augmented
    assert all(torch.equal(a, b) for a, b in zip(TRAIN.tensors, photos(1), strict=True))


def test_a_zero_gradient_of_one_batch_is_told():
    model = nn.Sequential(nn.Hardtanh(2, 3), small())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        SteeredDraws(model, warmup=0, period=1)(X, Y)
    assert sum("zero for a whole batch" in str(w.message) for w in seen) == 1


def test_the_dtype_of_a_model_is_that_of_its_first_floating_parameter():
    assert Reader(small().bfloat16()).dtype == torch.bfloat16
    assert Reader(nn.Identity()).dtype == torch.float32


@pytest.mark.parametrize("count", [1, 2])
def test_batches_smaller_than_the_share_are_augmented_as_often_as_it_says(count):
    steered = SteeredDraws(small(), augmenter=AUGMENTER, share=0.2, tilt=0)
    changed = sum(int((steered(X[:count], Y[:count]) != X[:count]).flatten(1).any(1).sum()) for _ in range(300))
    assert changed == pytest.approx(0.2 * count * 300, rel=0.3)
    untouched = SteeredDraws(small(), augmenter=AUGMENTER, share=0, tilt=0)
    assert torch.equal(untouched(X[:count], Y[:count]), X[:count])


def test_no_images_come_back_as_none_before_the_first_batch_too():
    steered = SteeredDraws(small())
    assert steered(X[:0], Y[:0]).shape == (0, 3, 16, 16)
    assert steered(X, Y).shape == X.shape


MAKES = [lambda m: SteeredDraws(m, warmup=0, period=1), lambda m: DrawChoice(m, AUGMENTER)]


@pytest.mark.parametrize("make", MAKES)
def test_a_classifier_that_has_diverged_is_named_as_the_cause(make):
    model = small()
    augment = make(model)
    augment(X, Y)
    model[-1].weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="got NaN on augmented images: its training has diverged"):
        augment(X, Y)
    model[-1].weight.data[0] = 1e38  # an infinite loss is none
    assert augment(X, Y).isfinite().all()


@pytest.mark.parametrize("make", MAKES)
def test_images_through_which_something_else_trains_are_refused(make):
    front = torch.ones(1, requires_grad=True)
    for images in (X * front, X.clone().requires_grad_()):
        with pytest.raises(ValueError, match=r"must not ask for gradients.*images.detach\(\)"):
            make(small())(images, Y)


@pytest.mark.parametrize("labels", [{"a": Y}, (Y, Y), Y.tolist()])
@pytest.mark.parametrize("make", [SteeredDraws, lambda m, **kw: DrawChoice(m, AUGMENTER, **kw)])
def test_a_loss_of_ones_own_takes_labels_in_one_tensor(make, labels):
    with pytest.raises(ValueError, match=r"labels must be a tensor with one entry per image, got (dict|tuple|list)"):
        make(small(), loss=lambda out, y: out[:, 0])(X, labels)


def test_a_state_of_before_the_first_batch_brings_back_that_no_prior_was_made():
    model = small()
    one, two = SteeredDraws(model, tilt=0), SteeredDraws(model, tilt=0)
    state = one.state_dict()
    two(X.flip(0) * 0.5, Y)
    two.load_state_dict(state)
    assert torch.equal(two(X, Y), one(X, Y))


def test_a_model_without_parameters_is_followed_and_resumed():
    steered = SteeredDraws(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), warmup=0)
    steered(X, Y)
    steered.load_state_dict(steered.state_dict())
    assert steered(X, Y).shape == X.shape


def test_images_beyond_the_range_of_a_given_augmenter_are_refused_at_the_first_batch():
    normalized = (X - 0.5) / 0.2
    for images in (normalized, X * 255):
        for augment in (SteeredDraws(small(), augmenter=AUGMENTER), DrawChoice(small(), [AUGMENTER, None])):
            with pytest.raises(ValueError, match=r"images must be in \[0, 1\] unless their normalization is stated"):
                augment(images, Y)
        data = TensorDataset(images, Y)
        with pytest.raises(ValueError, match=r"images must be in \[0, 1\] unless their normalization is stated"):
            retrain(small(), data, RetrainConfig(steps=1), augment=Chain(lambda x: x, AUGMENTER))
    own = prior(normalized, mean=0.5, std=0.2)
    for options in ({}, {"mean": [0.5] * 3, "std": 0.2}):
        assert SteeredDraws(small(), augmenter=own, **options)(normalized, Y).shape == X.shape
        assert DrawChoice(small(), own, **options)(normalized, Y).shape == X.shape
    for make in (lambda **kw: SteeredDraws(small(), augmenter=own, **kw), lambda **kw: DrawChoice(small(), own, **kw)):
        with pytest.raises(ValueError, match=r"mean must be that of the augmenter's images, \(0.5,\), got 0"):
            make(mean=0)


def test_a_prior_refuses_images_that_are_not_normalized_as_stated():
    normalized = (X - 0.5) / 0.2
    with pytest.raises(ValueError, match=r"in \[0, 1\] once \(x - \(0.5,\)\) / \(1.0,\) is undone, got"):
        prior(normalized, mean=0.5)
    with pytest.raises(ValueError, match="must hold at least one image"):
        prior(X[:0])
    config = prior(normalized, mean=torch.tensor([0.5] * 3), std=torch.tensor(0.2, dtype=torch.float64)).config
    assert (config.mean, config.std) == ((0.5,) * 3, (0.2,))


def test_a_prior_reads_the_normalization_of_its_config_alone():
    normalized, config = (X - 0.5) / 0.2, AugmenterConfig(size=16, mean=(0.5,), std=(0.2,))
    assert prior(normalized, config=config).config.mean == (0.5,)
    with pytest.raises(ValueError, match="mean and std must be None beside config="):
        prior(normalized, mean=0.5, std=0.2, config=config)
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\] unless"):
        prior(normalized, config=AugmenterConfig(size=16))


@pytest.mark.parametrize("part", [TRAIN, Subset(TRAIN, range(4)), ConcatDataset([VAL, Subset(TRAIN, range(4))])])
@pytest.mark.parametrize(
    "call",
    [
        lambda part: fit(small(), TRAIN, part),
        lambda part: compare(small, TRAIN, part, ["baseline"]),
        lambda part: compare(small, TRAIN, VAL, ["baseline"], val=part),
        lambda part: compare(small, VAL, TRAIN, ["baseline"], val=part),
        lambda part: SteeredDraws(small(), by="influence", train=TRAIN, val=part),
        lambda part: DrawChoice(small(), AUGMENTER, train=TRAIN, val=part),
        lambda part: strength_curves(small(), TRAIN, part, AUGMENTER),
    ],
    ids=["fit", "test", "val and train", "val and test", "steered", "chosen", "curves"],
)
def test_data_that_share_samples_are_refused_by_all_who_read_two(call, part):
    with pytest.raises(ValueError, match=r"must hold images that are not in \w+, got (the same object|\d+ images)"):
        call(part)


@pytest.mark.parametrize("data", [{"by": "loss", "val": VAL}, {"train": TRAIN}, {"by": "loss", "train": TRAIN}])
def test_data_that_a_choice_by_the_loss_would_not_read_is_refused(data):
    with pytest.raises(ValueError, match='train= and val= are for by="influence", got by="loss"'):
        DrawChoice(small(), AUGMENTER, **data)


COUNTS = [
    *(
        (SteeredDraws, {name: value})
        for name in ("warmup", "period", "every")
        for value in (0.5, math.nan, "1", True, -1)
    ),
    *((lambda m, **kw: DrawChoice(m, AUGMENTER, **kw), {name: 2.0}) for name in ("draws", "every")),
]


@pytest.mark.parametrize(("make", "options"), COUNTS)
def test_counts_that_are_no_integers_are_refused(make, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be an integer >= ., got"):
        make(small(), **options)


@pytest.mark.parametrize("options", [{"tilt": "3"}, {"gate": None}, {"share": "0.5"}, {"strength": [True, 2]}])
def test_settings_that_are_no_numbers_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be a finite"):
        SteeredDraws(small(), **options)


def test_numbers_of_numpy_are_settings():
    settings = {"tilt": 2.0, "gate": 2.0, "share": (0.5, 0.75), "warmup": 0, "period": 1}
    same = {name: np.array(value)[()] for name, value in settings.items() if name != "share"}
    one, two = (
        SteeredDraws(small(), augmenter=AUGMENTER, **options)(X, Y)
        for options in (settings, {**same, "share": tuple(np.array(settings["share"], dtype=np.float32))})
    )
    assert torch.equal(one, two)


class Checkpointed(nn.Module):
    """A model whose first part is computed anew for its gradients."""

    def __init__(self, reentrant):
        super().__init__()
        self.model, self.reentrant = small(), reentrant

    def forward(self, images):
        out = checkpoint(self.model[:2], images, use_reentrant=self.reentrant)
        return self.model[2:](out)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("data", [{}, DATA], ids=["loss", "influence"])
def test_checkpointing_is_followed_or_refused_with_the_remedy(data):
    assert SteeredDraws(Checkpointed(reentrant=False), warmup=0, **data)(X, Y).shape == X.shape
    with pytest.raises(ValueError, match="use use_reentrant=False"):
        SteeredDraws(Checkpointed(reentrant=True), **data)(X, Y)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("state", [{}, None, {"calls": 3}])
def test_a_state_of_something_else_is_refused(make, state):
    with pytest.raises(ValueError, match=r"state must be what .*\.state_dict\(\) gave, got .* without"):
        make(small()).load_state_dict(state)


def test_the_state_of_draws_by_the_loss_goes_on_by_influence():
    model = small()
    one = SteeredDraws(model, warmup=0, period=1)
    one(X, Y)
    two = SteeredDraws(model, warmup=0, period=1, **DATA)
    two.load_state_dict(one.state_dict())
    assert two(X, Y).shape == X.shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_of_another_dtype_keep_it_through_a_resume(dtype):
    model = small()
    one, two = (SteeredDraws(model, augmenter=prior(X).to(dtype), warmup=0, period=1) for _ in range(2))
    one(X, Y)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(X, Y), two(X, Y))


@pytest.mark.parametrize("make", MAKES)
def test_another_default_device_changes_nothing(make):
    one, two = make(small()), make(small())
    torch.manual_seed(0)
    expected = one(X, Y)
    torch.manual_seed(0)
    with torch.device("meta"):
        assert torch.equal(two(X, Y), expected)


def test_missing_labels_of_a_loss_of_ones_own_pass():
    def present(output, labels):
        return torch.where(labels.isnan(), 0.0, (output - labels.nan_to_num()).square()).mean(1)

    labels = F.one_hot(Y, CLASSES).float()
    labels[::2, 1] = torch.nan
    model = small()
    for augment in (SteeredDraws(model, loss=present), DrawChoice(model, [AUGMENTER, None], loss=present)):
        assert augment(X, labels).isfinite().all()
