"""Train under `accelerate launch`: the options of `detr-panoptic train`."""

import sys

from detr_panoptic.commands import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
