"""The ``learned-aug`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from learned_aug import demo

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv`, by default that of the process; returns the exit status."""
    parser = argparse.ArgumentParser(prog="learned-aug", description="Augmentation networks fitted to your classifier.")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    sub = commands.add_parser(
        "demo",
        help="fit an augmenter to a digit classifier and compare it, in a few minutes on a CPU",
        description=demo.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("--out", type=Path, default=Path("learned-aug-demo"), help="folder for the results (%(default)s)")
    sub.add_argument("--seed", type=int, default=0, help="of the networks, the fit and the data order (%(default)s)")
    sub.add_argument("--quick", action="store_true", help="a tenth of the training: shows the path, not the accuracy")
    args = parser.parse_args(argv)
    try:
        print(demo.run(args.out, seed=args.seed, quick=args.quick))
    except OSError as error:
        print(f"learned-aug: cannot write to {args.out}: {error}; choose another folder with --out", file=sys.stderr)
        return 1
    return 0
