"""Peak memory of a process that predicts or trains: transformers' DetrForSegmentation and ours.

    python benchmarks/memory.py --sizes 800x1066 --cases import transformers ours-20

Each case has a process of its own: on a CPU its largest resident set is measured, interpreter, libraries and weights
included, on CUDA the allocator's largest sum.
"""

import argparse
import resource
import subprocess
import sys
from typing import Any

import torch
from torch import nn

from cases import NUM_LABELS, bias_that_keeps, describe_run, markdown_table, parser, random_images, transformers_model
from detr_panoptic import DetrPanopticConfig, DetrPanopticForSegmentation
from training_step import training_batch, training_step

CASES = """
    import        nothing but the imports
    transformers  a prediction of transformers' model
    detector      a prediction of its detector alone
    ours-K        a prediction of ours with K kept queries
    train-transformers, train-ours, train-ours-small, train-ours-checkpointed
                  a training step; small: with the mask loss at the masks' own size
"""


def main() -> None:
    """Prints a table per size; with --alone the bytes of one case."""
    arguments = _arguments()
    if arguments.alone:
        print(peak_bytes(arguments.cases[0], arguments.sizes[0], arguments))
        return
    print(describe_run(arguments.device))
    for size in arguments.sizes:
        shared = ["--device", arguments.device, "--batch", str(arguments.batch), "--objects", str(arguments.objects)]
        rows = []
        for case in arguments.cases:
            command = [sys.executable, __file__, "--alone", "--cases", case, "--sizes", "{}x{}".format(*size), *shared]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append([case, f"{int(output.split()[-1]) / 1e9:.2f}"])
        print(f"### {arguments.batch} x {size[0]}x{size[1]}\n")
        print(markdown_table(["", "peak, GB"], rows))


def peak_bytes(case: str, size: tuple[int, int], arguments: argparse.Namespace) -> int:
    """Runs a case twice and says what it took at most."""
    if case.startswith("train"):
        _train(case, size, arguments)
    elif case != "import":
        _predict(case, size, arguments)
    if arguments.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


@torch.no_grad()
def _predict(case: str, size: tuple[int, int], arguments: argparse.Namespace) -> None:
    name, _, kept = case.partition("-")
    model = (_ours() if name == "ours" else transformers_model()).eval().to(arguments.device)
    model = model.detr if name == "detector" else model
    images = {key: value.to(arguments.device) for key, value in random_images(arguments.batch, size).items()}
    if name == "ours":
        model.class_head.bias[-1] += bias_that_keeps(model(**images, mask_queries=0).logits, int(kept))
    for _ in range(2):
        model(**images)


def _train(case: str, size: tuple[int, int], arguments: argparse.Namespace) -> None:
    if case == "train-transformers":
        model: nn.Module = transformers_model(auxiliary_loss=False)
    else:
        model = _ours(auxiliary_loss=False, mask_loss_resolution="mask" if case.endswith("small") else "image")
        if case.endswith("checkpointed"):
            model.activation_checkpointing_enable()
    step = training_step(
        model.to(arguments.device).train(),
        training_batch(arguments.batch, size, arguments.objects, arguments.device),
    )
    for _ in range(2):
        step()


def _ours(**settings: Any) -> DetrPanopticForSegmentation:
    # Built alone: a second model beside it would count.
    settings["num_labels"] = NUM_LABELS
    return DetrPanopticForSegmentation(DetrPanopticConfig(**settings))


def _arguments() -> argparse.Namespace:
    arguments = parser(f"{str(__doc__).partition(chr(10))[0]} Cases: {CASES}", size="480x640")
    arguments.add_argument("--cases", nargs="+", default=["import", "detector", "transformers", "ours-20"])
    arguments.add_argument("--batch", type=int, default=1)
    arguments.add_argument("--objects", type=int, default=8, help="targets of each image, in training")
    arguments.add_argument("--alone", action="store_true", help="run the first case in this process")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
