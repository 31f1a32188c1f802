"""Publish an augmenter on the Hugging Face Hub with a model card, and read back what was published.

    hf auth login
    python examples/publish.py FOLDER USER/NAME [--private]

FOLDER is what `save_pretrained` wrote. Replace the facts below by yours: a card that says "Not stated." is honest, but
helps nobody. A folder that has its card already, as `learned-aug fit` writes one with pictures and figures, is
published as it is by `learned-aug push FOLDER USER/NAME`.
"""

import argparse
from pathlib import Path

import torch

from learned_aug import Augmenter, CardFacts

FACTS = CardFacts(
    data="MNIST; 600 training, 2,000 hyper-validation and 2,000 test images, balanced",
    data_license="CC BY-SA 3.0",
    datasets=("ylecun/mnist",),
    classifier="four stride-2 convolutions and one linear layer",
    protocol="example only: put here the schedule, the seeds and the command",
    results=(  # the fitted augmenter first, then its controls; nothing that was not measured
        # learned_aug.CardResult(arm="crops and the fitted augmenter", error=..., std=..., runs=...),
        # learned_aug.CardResult(arm="crops and the untrained augmenter", error=..., std=..., runs=...),
    ),
    license="apache-2.0",
    limits="Fitted to one small classifier of digits.",
)


def main() -> None:
    """Publish, load the very commit, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what save_pretrained wrote")
    parser.add_argument("repo_id", help="user/name or organization/name")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    args = parser.parse_args()
    augmenter = Augmenter.from_pretrained(args.folder)
    commit = augmenter.push_to_hub(args.repo_id, card=FACTS, private=args.private)
    published = Augmenter.from_pretrained(args.repo_id, revision=commit)
    state = published.state_dict()
    if not all(torch.equal(tensor, state[name]) for name, tensor in augmenter.state_dict().items()):
        raise RuntimeError(f"{args.repo_id} at {commit} is not what was pushed")
    print(f'Published. Use it with LearnedAugment.from_pretrained("{args.repo_id}", revision="{commit}")')


if __name__ == "__main__":
    main()
