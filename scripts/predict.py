"""Predict under `accelerate launch`: the options of `detr-panoptic predict`."""

import sys

from detr_panoptic.commands import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
