"""The ``learned-aug`` command: finds the command that is asked for, and reports what the user can fix in one line.

A command's module is imported, and its options are built, only when it runs: the help must not wait for torchvision.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TextIO

__all__ = ["IncompleteError", "main", "note", "one_line", "plain"]

INTERRUPTED = 130  # the shell's exit status for Ctrl-C
INCOMPLETE = 3  # the exit status where the work is done and written, and a part of its report is missing
WORKER = "DataLoader worker process"  # in the text of errors that torch brings over from one

COMMANDS = {
    "demo": "the whole method on real digits that come with the package, one to three minutes on a CPU",
    "fit": "fit an augmenter to your classifier on folders of images",
    "compare": "train fresh classifiers with several augmentations on folders of images, paired by seed",
    "preview": "draw what an augmenter does to your images",
    "push": "publish an augmenter on the Hugging Face Hub",
    "list": "list the pretrained weights of this release",
}

ABOUT = """\
Random image augmentations that need no search, steered by your classifier while it trains; with an influence engine.

  learned-aug demo
  learned-aug fit --model resnet18 --weights resnet18.pt --data DIR --out my-aug
  learned-aug compare --model resnet18 --data DIR --out my-comparison --seeds 3
  learned-aug preview ./my-aug/augmenter photo.jpg --out grid.png
  learned-aug push my-aug/augmenter me/my-aug

commands:
"""


class IncompleteError(Exception):
    """The work is done and written, and a part of its report is missing.

    Args:
        report: what the command has to say of what is there.
        missing: names of what is missing; the reasons were told as warnings.
    """

    def __init__(self, report: str, missing: Sequence[str]) -> None:
        super().__init__(f"missing: {', '.join(missing)}; see the warnings above")
        self.report = report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv`, by default that of the process, and return the exit status."""
    raw = argparse.RawDescriptionHelpFormatter
    about = ABOUT + "".join(f"  {name:9} {text}\n" for name, text in COMMANDS.items())
    about += "\nlearned-aug COMMAND --help explains each."
    parser = argparse.ArgumentParser(prog="learned-aug", description=about, formatter_class=raw)
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from, for a bug report")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the above")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="the command's own options")
    args = parser.parse_args(argv)
    command = importlib.import_module(f"learned_aug.cli.{args.command}")
    prog = f"learned-aug {args.command}"
    parser = argparse.ArgumentParser(prog=prog, description=command.__doc__, formatter_class=raw)
    command.add_arguments(parser)
    return _run(command.run, parser.parse_args(args.options), traceback=args.traceback)


def _run(run: Callable[[argparse.Namespace], str], options: argparse.Namespace, *, traceback: bool) -> int:
    from learned_aug.fit.checkpoint import CheckpointError
    from learned_aug.weights.files import WeightsError

    # All else is a bug.
    fixable = (ValueError, OSError, RuntimeError, ImportError, WeightsError, CheckpointError, MemoryError)
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_: note(f"warning: {message}")
        try:
            options.traceback = traceback
            _say(run(options))
        except KeyboardInterrupt:
            note("interrupted")
            return INTERRUPTED
        except IncompleteError as error:
            _say(error.report)
            note(str(error))
            return INCOMPLETE
        except fixable as error:
            if traceback:
                raise
            note(one_line(error))
            return 1
    return 0


def one_line(error: BaseException) -> str:
    """Say an error in one line; of one that a data loader's worker met, what the worker raised."""
    text = str(error) or type(error).__name__
    if text.startswith("Caught ") and WORKER in text:
        lines = text.rsplit("Traceback (most recent call last):", 1)[-1].splitlines()
        text = " ".join(itertools.dropwhile(lambda line: not line or line.startswith(" "), lines))
        text = re.sub(r"^[\w.]+: ", "", text)  # the error's type
    return " ".join(text.split())


def note(text: str) -> None:
    """Tell the user something on standard error."""
    _say(f"learned-aug: {text}", sys.stderr)


def plain(text: str) -> str:
    """Return a text that can be written as UTF-8: parts of paths that are none are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _say(text: str, stream: TextIO | None = None) -> None:
    """Write a line; what the terminal's encoding lacks is escaped, so that no finished work ends in an error."""
    file = sys.stdout if stream is None else stream
    encoding = getattr(file, "encoding", None) or "utf-8"
    file.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    file.flush()
