"""timm's loader with a learned augmentation between its crop and its normalization; needs `pip install timm`.

python examples/with_timm.py
"""

import timm
import torch
from timm.data import create_loader
from use_in_pipeline import Digits, untrained

from learned_aug import LearnedAugment


def main(steps: int = 6) -> list[float]:
    """Some steps of a small network; returns their losses."""
    dataset = Digits(None)
    loader = create_loader(
        dataset,
        input_size=(1, 28, 28),
        batch_size=50,
        is_training=True,
        scale=(0.8, 1.0),
        hflip=0.0,
        color_jitter=None,
        mean=(0.13,),
        std=(0.31,),
        num_workers=0,
        persistent_workers=False,
        use_prefetcher=False,
    )
    # Behind the crop, whose result E and G know, and before the tensor: PIL images in, PIL images out.
    dataset.transform.transforms.insert(1, LearnedAugment(untrained()))
    model = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    losses = []
    for images, labels in loader:
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
