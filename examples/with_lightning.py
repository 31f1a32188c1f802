"""A Lightning module whose draws its classifier steers, resumed with it; needs `pip install lightning`.

python examples/with_lightning.py
"""

from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from learned_aug import SteeredDraws
from learned_aug.digits import all_conv, digits


class Classifier(lightning.LightningModule):
    """The demo's classifier; SteeredDraws is no module, so neither trained with it nor moved."""

    def __init__(self) -> None:
        super().__init__()
        self.model = all_conv(width=4)
        self.steered = SteeredDraws(self.model)  # of normalized images: mean= and std= of their Normalize

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy on augmented images; those of validation_step stay as they are."""
        images, labels = batch
        loss = torch.nn.functional.cross_entropy(self.model(self.steered(images, labels)), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the networks and the position of the draws beside the model."""
        checkpoint["steered"] = self.steered.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the draws that would have come."""
        self.steered.load_state_dict(checkpoint["steered"])


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
    trainer.fit(Classifier(), DataLoader(digits()["train"], batch_size=50, shuffle=True))
    print(f"{trainer.global_step} steps, loss {float(trainer.callback_metrics['loss']):.3f}")
    return trainer


if __name__ == "__main__":
    main()
