"""The whole method on real digits, cell by cell: a notebook and a script."""

# %% [markdown]
# # The method, step by step
#
# Editors such as VS Code and PyCharm run the cells of this file one by one, and `python walkthrough.py`, in its folder,
# runs them all, in a minute or two on a CPU. The pictures go to `walkthrough/`, or to the folder in the environment
# variable `WALKTHROUGH_OUT`. The data, 600 training digits and some others, come with the package.
#
# The question: which changes of the training images would lower the validation loss of *this* classifier? The answer of
# the paper: a network that makes the changes, trained on what an influence function predicts for them.

# %%
import os
from pathlib import Path

import torch
from pictures import CROP, drawn, predicted_and_actual, train
from torchvision.transforms import v2

from learned_aug import (
    Augmenter,
    AugmenterConfig,
    DropoutConfig,
    FitConfig,
    LearnedAugment,
    PretrainConfig,
    evaluate,
    fit,
)
from learned_aug.cli.report import png
from learned_aug.digits import digits
from learned_aug.viz import diversity_grid, fit_curves, influence_scatter, tau_traversal

OUT = Path(os.environ.get("WALKTHROUGH_OUT", "walkthrough"))
STEPS = int(os.environ.get("WALKTHROUGH_STEPS", "600"))  # of each training
OUT.mkdir(parents=True, exist_ok=True)
data = digits()  # "train", "val" and "test": data sets of (image in [0, 1], label)
images = data["test"].tensors[0][:8]


def save(name, picture):
    """A small PNG file."""
    (OUT / name).write_bytes(png(picture))


# %% [markdown]
# ## The classifier
#
# Anything that ends in an `nn.Linear` and has been trained. This one is trained with random crops, the *baseline*.

# %%
model = train(data["train"], STEPS)
print(f"crops: {evaluate(model, data['test'])[0]:.2%} of the test digits wrong")

# %% [markdown]
# ## The augmenter
#
# An encoder E turns an image into a code tau of 128 numbers. Dropout masks half of them: that is all the randomness
# there is. A generator G turns the rest into a field of small affine maps, by which the image is warped, and for color
# images into a color filter.
#
# Before any training it warps at random; `calibrate_` sets how strongly. This is the control that every result has to
# beat.

# %%
untrained = Augmenter(AugmenterConfig(channels=1, size=28), generator=torch.Generator().manual_seed(0))
untrained.calibrate_(data["train"].tensors[0][:100], generator=torch.Generator().manual_seed(0))
noise = untrained.draw_noise(2, generator=torch.Generator().manual_seed(1))
kept = untrained.trace(images[1].expand(2, -1, -1, -1), noise).masks > 0
print(f"kept in each of two draws: {kept.float().mean((1, 2)).tolist()}")

# %% [markdown]
# From one draw of the dropout to another, in ten steps. The color of the field is the direction that a pixel is
# fetched from, its purity the distance.

# %%
save("traversal.png", tau_traversal(untrained, images[1], noise))

# %% [markdown]
# ![From one draw to another](walkthrough/traversal.png)
#
# ## Influence
#
# If one training image is replaced by an augmented copy, how does the validation loss change? To know it, one would
# train again. The influence function predicts it from the gradients at hand, here for the last layer: with H the
# Hessian of the training loss, the change is
#
#     1/N  grad L(val)^T  H^-1  (grad l(image) - grad l(copy))
#
# `fit` solves `s_val = H^-1 grad L(val)` once. Below are some replacements, predicted, and measured by training the
# last layer anew. With only 600 images a single one has leverage, and the prediction, a first order, overshoots where
# the change is large; `benchmarks/influence/validity.py` shows how well it holds with 10,000.

# %%
torch.manual_seed(0)
predicted, actual = predicted_and_actual(model, LearnedAugment(untrained), data["train"], data["val"], count=40)
save("influence.png", drawn(influence_scatter(predicted, actual)))
agree = float((predicted.sign() == actual.sign()).double().mean())
print(f"sign right for {agree:.0%} of {len(predicted)} replacements")

# %% [markdown]
# ![Predicted against actual](walkthrough/influence.png)
#
# ## The fit
#
# Stage 1, the paper's, trains E and G, as a relativistic GAN, to make images that look like the baseline's crops (it
# runs only if asked for, as here with `PretrainConfig`). In stage 3 E learns for each image which units of the code to
# keep more often, and which less, so that draws come up which lower the validation loss, as the influence predicts it.
# (The paper moves E and G themselves along the influence, which is `maximize=LinearConfig()`; the README says how both
# do.)

# %%
config = FitConfig(pretrain=PretrainConfig(steps=STEPS // 4), maximize=DropoutConfig(steps=STEPS // 4))
result = fit(model, data["train"], data["val"], baseline=CROP, config=config, progress=False)
print(result)

# %%
save("curves.png", drawn(fit_curves(result.history)))
save("draws.png", diversity_grid(result.augmenter, images, generator=torch.Generator().manual_seed(2)))

# %% [markdown]
# ![Curves of the fit](walkthrough/curves.png)
#
# Rows are images, columns are draws, the same in each row; the first column is the original.
#
# ![Draws of the fitted augmenter](walkthrough/draws.png)
#
# ## Training with it
#
# In a pipeline it is a torchvision transform like any other, before `Normalize`:

# %%
result.augmenter.save_pretrained(OUT / "augmenter")
pipeline = v2.Compose([LearnedAugment.from_pretrained(OUT / "augmenter", p=0.5), v2.Normalize([0.1307], [0.3081])])
print(pipeline(images).shape)

# %% [markdown]
# Fresh classifiers, from one start, with crops and with half of each batch augmented. The control has the same networks
# at the same strength, without the fit. One run of each is no evidence: differences below a percentage point are noise
# here, and the README says what many seeds showed.

# %%
errors = {"crops": evaluate(model, data["test"])[0]}
for name, augmenter in (("untrained control", result.prior), ("fitted", result.fitted)):
    errors[name] = evaluate(train(data["train"], STEPS, LearnedAugment(augmenter, p=0.5)), data["test"])[0]
for name, error in errors.items():
    print(f"{name:20} {error:.2%} of the test digits wrong")
