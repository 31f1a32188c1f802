"""Fit in several processes, on one machine or many, and go on after a crash.

    torchrun --nproc-per-node 2 examples/fit_distributed.py --checkpoint-dir fit --out my-augmenter

Each process holds the model on its own device (GPU if there is one) and works on its share of every batch; batch sizes
are those of all processes together, so that the result is that of one process but for rounding. If a process dies,
torchrun ends the others, and the same command goes on from the last checkpoint. On several machines give torchrun
`--nnodes` and `--rdzv-endpoint`; only process 0 reads and writes the checkpoint.
"""

import argparse
import os
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torchvision.transforms import v2

from learned_aug import DropoutConfig, FitConfig, PretrainConfig, RetrainConfig, fit, retrain
from learned_aug.digits import all_conv, digits


def main() -> None:
    """A short fit on the packaged digits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the augmenter's weights")
    parser.add_argument("--steps", type=int, default=100, help="of stages 1 and 3 each")
    args = parser.parse_args()

    # No process waits longer for another: longer than the slowest pass over a process's share of the features.
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=timedelta(minutes=30), device_id=device)
    else:
        device = torch.device("cpu")
        dist.init_process_group("gloo", timeout=timedelta(minutes=30))

    data, crop = digits(), v2.RandomCrop(28, padding=2)
    # Your trained model, loaded in each process. Here process 0 trains one, and sends it to the others.
    torch.manual_seed(0)
    model = all_conv(width=4).to(device)
    if dist.get_rank() == 0:
        retrain(model, data["train"], RetrainConfig(steps=2 * args.steps), seed=0)
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, 0)

    result = fit(
        model,
        data["train"],
        data["val"],
        baseline=crop,
        config=FitConfig(pretrain=PretrainConfig(steps=args.steps), maximize=DropoutConfig(steps=args.steps)),
        checkpoint_dir=args.checkpoint_dir,
    )
    if dist.get_rank() == 0:
        result.augmenter.save_pretrained(args.out)
        print(result)
    time.sleep(0.1)  # torch 2.6 hangs if gloo's group is destroyed while its thread still frees the last tensor
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
