"""Copies a trained model into the package as the bundled checkpoint, in half precision; trains it first on request.

python scripts/ship_checkpoint.py --config configs/bundled.yaml --merging score_weighted
python scripts/ship_checkpoint.py outputs/scenes_320_end --merging score_weighted

Scores are converted to those of the paper's weight of "no object" (0.1): a weighted cross-entropy is smallest where
the probabilities are the true ones times the weights, so another weight corresponds to another bias of that class.
"""

import argparse
import math
import sys
from pathlib import Path

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor, train
from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.image_processing_detr_panoptic import MERGING_MODES
from detr_panoptic.training.model import equivalent_threshold

PAPER_EOS_COEFFICIENT = 0.1
CODE_SUFFIX = ".py"  # the Hub's copy of the code, which the package has already


def main() -> int:
    """Reads the trained folder and writes the bundled one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="output of a training run")
    parser.add_argument("--config", type=Path, help="settings of `train`: train or resume, then ship the model")
    parser.add_argument("--merging", choices=MERGING_MODES, default="paper", help="of its image processor")
    arguments = parser.parse_args()
    if (arguments.folder is None) == (arguments.config is None):
        parser.error("name either a folder or a --config")
    source = arguments.folder or train(config=arguments.config).model_folder
    model = DetrPanopticForSegmentation.from_pretrained(source)
    weights = model.config.eos_coefficient, PAPER_EOS_COEFFICIENT
    model.class_head.bias.data[-1] += math.log(weights[1] / weights[0])
    processor = DetrPanopticImageProcessor.from_pretrained(source, merging=arguments.merging)
    if isinstance(processor.threshold, list):
        parser.error("the thresholds of single classes are not shipped")
    processor.threshold = model.config.threshold = round(equivalent_threshold(processor.threshold, *weights), 2)
    model.config.eos_coefficient = PAPER_EOS_COEFFICIENT
    model.half()
    model.save_pretrained(BUNDLED)
    processor.save_pretrained(BUNDLED)
    for path in BUNDLED.iterdir():
        if path.suffix == CODE_SUFFIX:
            path.unlink()
        else:
            path.chmod(0o644)  # readable for all users of an installation
    size = sum(path.stat().st_size for path in BUNDLED.iterdir())
    print(f"{BUNDLED}: {size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
