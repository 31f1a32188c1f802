"""A Lightning module that augments whole batches where they are trained on; needs `pip install lightning`.

python examples/with_lightning.py
"""

import lightning
import torch
from torch.utils.data import DataLoader
from use_in_pipeline import untrained

from learned_aug import Augmenter
from learned_aug.digits import all_conv, digits


class Classifier(lightning.LightningModule):
    """The demo's classifier; its augmenter is frozen, and outside the checkpoint."""

    def __init__(self, augmenter: Augmenter) -> None:
        super().__init__()
        self.model = all_conv(width=4)
        self.augmenter = [augmenter]  # in a list: no submodule, so neither saved nor trained with the model

    def on_after_batch_transfer(
        self, batch: tuple[torch.Tensor, torch.Tensor], dataloader_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Lightning calls this on the device, in the main process."""
        images, labels = batch
        if self.trainer.training:
            images = self.augmenter[0].to(images.device)(images)
        return images, labels

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy."""
        images, labels = batch
        loss = torch.nn.functional.cross_entropy(self.model(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)


def main(steps: int = 6) -> lightning.Trainer:
    """Some steps on the packaged digits."""
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(untrained()), DataLoader(digits()["train"], batch_size=50, shuffle=True))
    print(f"{trainer.global_step} steps, loss {float(trainer.callback_metrics['loss']):.3f}")
    return trainer


if __name__ == "__main__":
    main()
