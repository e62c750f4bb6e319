"""Put a trained folder into the package, in half precision: what `detr-panoptic demo` loads.

python scripts/ship_checkpoint.py outputs/scenes_320_end --merging score_weighted

Scores are those of the paper's weight of "no object" (0.1), whatever the training's: a weighted cross-entropy is least
where the probabilities are the true ones times the weights, so another weight is another bias of that class.
"""

import argparse
import math
import sys
from pathlib import Path

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.commands.demo import SHIPPED_MODEL
from detr_panoptic.image_processing_detr_panoptic import MERGING_MODES

PAPER_EOS_COEFFICIENT = 0.1
CODE_SUFFIX = ".py"  # the package has its own code: what is saved beside the weights for the Hub stays out


def main() -> int:
    """Reads one folder, writes the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output of a training run")
    parser.add_argument("--merging", choices=MERGING_MODES, default="paper", help="of its image processor")
    arguments = parser.parse_args()
    source = arguments.folder
    model = DetrPanopticForSegmentation.from_pretrained(source)
    model.class_head.bias.data[-1] += math.log(PAPER_EOS_COEFFICIENT / model.config.eos_coefficient)
    model.config.eos_coefficient = PAPER_EOS_COEFFICIENT
    model.half()
    model.save_pretrained(SHIPPED_MODEL)
    DetrPanopticImageProcessor.from_pretrained(source, merging=arguments.merging).save_pretrained(SHIPPED_MODEL)
    for path in SHIPPED_MODEL.iterdir():
        if path.suffix == CODE_SUFFIX:
            path.unlink()
        else:
            path.chmod(0o644)  # who installs the package for all must let all read it
    size = sum(path.stat().st_size for path in SHIPPED_MODEL.iterdir())
    print(f"{SHIPPED_MODEL}: {size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
