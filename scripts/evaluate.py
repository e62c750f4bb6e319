"""Evaluate under `accelerate launch`: the options of `detr-panoptic evaluate`."""

import sys

from detr_panoptic.commands import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
