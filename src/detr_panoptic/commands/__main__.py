"""Runs the program with `python -m detr_panoptic.commands`."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
