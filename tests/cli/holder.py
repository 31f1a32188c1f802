"""A process that keeps a folder until it is killed: ``python -m tests.cli.holder FOLDER``."""

import sys
import time

from learned_aug.runtime.lock import lock_folder

if __name__ == "__main__":
    lock = lock_folder(sys.argv[1])
    sys.stdout.write("held\n")
    sys.stdout.flush()
    time.sleep(600)
