"""timm's loader, and draws that the classifier steers on its normalized batches; needs `pip install timm`.

python examples/with_timm.py
"""

import timm
import torch
from timm.data import create_loader
from use_in_pipeline import Digits

from learned_aug import SteeredDraws

MEAN, STD = (0.13,), (0.31,)


def main(steps: int = 6) -> list[float]:
    """Some steps of a small network; returns their losses."""
    loader = create_loader(
        Digits(None),
        input_size=(1, 28, 28),
        batch_size=50,
        is_training=True,
        scale=(0.8, 1.0),
        hflip=0.0,
        color_jitter=None,
        mean=MEAN,
        std=STD,
        num_workers=0,
        persistent_workers=False,
        use_prefetcher=False,
    )
    model = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    steered = SteeredDraws(model, mean=MEAN, std=STD)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    losses = []
    for images, labels in loader:
        images = steered(images, labels)  # before Mixup, which mixes labels
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if len(losses) == steps:
            break
    print(f"{type(model).__name__}: loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps")
    return losses


if __name__ == "__main__":
    main()
