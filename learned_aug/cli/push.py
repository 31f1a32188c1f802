"""Publish the folder that `learned-aug fit` or save_pretrained wrote on the Hugging Face Hub, with card and pictures.

Fill in README.md there first, and log in with `hf auth login`.

  learned-aug push my-aug/augmenter me/my-aug --private
"""

from __future__ import annotations

import argparse
from pathlib import Path

from learned_aug.augmenter import Augmenter
from learned_aug.weights import hub
from learned_aug.weights.card import published
from learned_aug.weights.files import encode

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="with model.safetensors, config.json and README.md")
    parser.add_argument("repo_id", metavar="REPO_ID", help="user/name or organization/name; made if need be")
    parser.add_argument("--private", action="store_true", default=None, help="make the repository private")
    parser.add_argument("--revision", help="branch, made if need be (main)")
    parser.add_argument("--message", default="Upload an augmenter", help="message of the commit (%(default)s)")


def run(args: argparse.Namespace) -> str:
    """Publish the folder and say how to use it.

    Raises:
        ValueError, OSError, WeightsError: for what the user can fix, in one line.
    """
    augmenter = Augmenter.from_pretrained(args.folder)  # whatever cannot be read again is not published
    options = {"private": args.private, "revision": args.revision}
    if card := published(args.folder, args.repo_id):
        files = {**encode(augmenter.config, augmenter.state_dict()), **card}
        commit = hub.push(args.repo_id, files, message=args.message, **options)
    else:
        commit = augmenter.push_to_hub(args.repo_id, commit_message=args.message, **options)
    return f'Published. Use it with LearnedAugment.from_pretrained("{args.repo_id}", revision="{commit}")'
