"""Log a fit: every event as a line of JSON; TensorBoard and Weights & Biases by the lines in `main`.

    python examples/with_logger.py [FILE]

An event has a stage, the steps done, their total, and metrics by name.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from torchvision.transforms import v2

from learned_aug import DropoutConfig, FitConfig, PretrainConfig, RetrainConfig, fit, retrain
from learned_aug.digits import all_conv, digits
from learned_aug.runtime.events import Event


def json_lines(path: Path) -> Callable[[Event], None]:
    """Append to a file, so that a resumed fit goes on in it; a resumed stage repeats the steps it lost."""

    def log(event: Event) -> None:
        with path.open("a") as file:
            file.write(json.dumps({"stage": event.stage, "step": event.step, **event.metrics}) + "\n")

    return log


def scalars(writer: object) -> Callable[[Event], None]:
    """To what has TensorBoard's `add_scalar(tag, value, step)`."""

    def log(event: Event) -> None:
        for name, value in event.metrics.items():
            writer.add_scalar(f"{event.stage}/{name}", value, event.step)

    return log


def main(path: Path = Path("fit.jsonl"), steps: int = 20) -> None:
    """A short fit on the packaged digits."""
    data, crop = digits(), v2.RandomCrop(28, padding=2)
    model = all_conv(width=4)
    retrain(model, data["train"], RetrainConfig(steps=10 * steps), baseline=crop)
    config = FitConfig(pretrain=PretrainConfig(steps=steps), maximize=DropoutConfig(steps=steps))

    log = json_lines(path)
    # TensorBoard (pip install tensorboard; from torch.utils.tensorboard import SummaryWriter):
    #     log = scalars(SummaryWriter("runs/fit"))
    # Weights & Biases (pip install wandb; wandb.init()):
    #     log = lambda event: wandb.log({f"{event.stage}/{name}": value for name, value in event.metrics.items()})
    fit(model, data["train"], data["val"], baseline=crop, config=config, on_event=log)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
