"""Hugging Face's Trainer with draws that its model steers; needs `pip install transformers accelerate`.

python examples/with_transformers.py
"""

import tempfile
from typing import Any

import torch
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from learned_aug import SteeredDraws
from learned_aug.digits import digits


class SteeredTrainer(Trainer):
    """Augments each batch on its way into the training step; what is evaluated stays as it is."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.steered = SteeredDraws(self.model)  # of normalized images: mean= and std= of the image processor

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *rest: Any, **options: Any) -> torch.Tensor:
        """Augment, then do what Trainer does."""
        inputs = self._prepare_inputs(inputs)  # on the device
        images = self.steered(inputs["pixel_values"], inputs["labels"])
        return super().training_step(model, {**inputs, "pixel_values": images}, *rest, **options)


def collate(samples: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    """Name what a batch holds as models of transformers do."""
    images, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def main(steps: int = 6) -> Trainer:
    """Some steps on the packaged digits."""
    shape = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=10, **shape))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=50, report_to=[], save_strategy="no", disable_tqdm=True
        )
        trainer = SteeredTrainer(model=model, args=arguments, train_dataset=digits()["train"], data_collator=collate)
        loss = trainer.train().training_loss
    print(f"{trainer.state.global_step} steps, mean loss {loss:.3f}")
    return trainer


if __name__ == "__main__":
    main()
