"""What the benchmarks share: the same weights in both models, the queries that are kept, timing in turns, tables."""

import argparse
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it
from transformers import (
    DetrConfig,
    DetrForSegmentation,
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
)

from detr_panoptic import DetrPanopticForSegmentation
from detr_panoptic.checkpoints.conversion import build_model, convert_state_dict

NUM_LABELS = 250  # as the published panoptic checkpoints
LABELS: Any = {"num_labels": NUM_LABELS}
EOMT: Any = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "patch_size": 16}  # a ViT-S


def parser(description: str, *, size: str) -> argparse.ArgumentParser:
    """The arguments that every benchmark has."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    result.add_argument("--sizes", nargs="+", type=_size, default=[_size(size)], metavar="HxW")
    result.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    result.add_argument("--tf32", action="store_true", help="on a GPU: products of float32 numbers in TF32")
    result.add_argument("--repeats", type=int, default=3, help="timed runs of each contestant, in turns")
    return result


def set_precision(arguments: argparse.Namespace) -> None:
    """PyTorch's default mixes the two: TF32 in convolutions, float32 in matrix products."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = arguments.tf32


def transformers_model(**settings: Any) -> DetrForSegmentation:
    """Transformers' DETR-R50 with a mask head and random weights, the same every time."""
    torch.manual_seed(0)
    model = DetrForSegmentation(DetrConfig(**{"backbone": "resnet50", "num_labels": NUM_LABELS, **settings}))
    _make_queries_differ(model.eval())
    return model


def our_model(theirs: DetrForSegmentation) -> DetrPanopticForSegmentation:
    """Our model with the same weights."""
    return build_model(convert_state_dict(theirs.state_dict(), theirs.config.to_dict()), attn_implementation="sdpa")


@torch.no_grad()
def rivals(theirs: DetrForSegmentation, size: Sequence[int]) -> dict[str, tuple[nn.Module, Sequence[int], Any]]:
    """Transformers' newer models of like size: each with the size of its images and its image processor.

    Mask2Former has the same ResNet-50, with the same weights: its maps are compared. EoMT takes squares of one size,
    here of as many pixels. The other weights are random.
    """
    torch.manual_seed(0)
    masks = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=theirs.config.backbone_config, **LABELS)
    ).eval()
    encoder, backbone = masks.model.pixel_level_module.encoder, theirs.detr.model.backbone
    encoder._backbone.load_state_dict(backbone.model.state_dict(), strict=False)  # its norms also count batches
    images = {name: value.to(theirs.device) for name, value in random_images(1, (64, 96)).items()}
    maps = encoder.to(theirs.device)(images["pixel_values"]).feature_maps
    for own, (expected, _) in zip(maps, backbone(**images), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
    side = EOMT["patch_size"] * round((size[0] * size[1]) ** 0.5 / EOMT["patch_size"])
    tokens = EomtForUniversalSegmentation(EomtConfig(**EOMT, **LABELS, image_size=side)).eval()
    edges = {"shortest_edge": min(size), "longest_edge": 2 * max(size)}
    return {
        "transformers, Mask2Former-R50": (masks, size, Mask2FormerImageProcessor(size=edges)),
        "transformers, EoMT-S": (
            tokens,
            (side, side),
            EomtImageProcessor(size=dict.fromkeys(edges, side), do_pad=True),
        ),
    }


def random_images(batch: int, size: Sequence[int]) -> dict[str, Tensor]:
    """A batch without padding, and the mask that says so."""
    generator = torch.Generator().manual_seed(1)
    areas = torch.randn(batch, 3, 9, 11, generator=generator)
    grain = torch.randn(batch, 3, *size, generator=generator)
    return {
        "pixel_values": 2 * F.interpolate(areas, size=size, mode="bicubic") + 0.3 * grain,
        "pixel_mask": torch.ones(batch, *size, dtype=torch.int64),
    }


def bias_that_keeps(logits: Tensor, kept: int) -> float:
    """What to add to the bias of "no object" so that `kept` queries per image, on average, see an object."""
    margins = (logits[..., :-1].amax(-1) - logits[..., -1]).flatten().double().sort(descending=True).values
    border = kept * len(logits)
    if border == 0:
        return margins[0].item() + 1
    if border == len(margins):
        return margins[-1].item() - 1
    return margins[border - 1 : border + 1].mean().item()


def time_in_turns(
    contestants: Mapping[str, Callable[[], object]],
    repeats: int,
    device: str,
    *,
    pause: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each run. Contestants take turns, so that what else the machine does meets all of them alike.

    Every turn has another order: a run leaves caches and freed memory to the next. Before each there are `pause`
    seconds, for threads of another library to stop spinning.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    order = random.Random(0)
    for turn in range(repeats + 1):
        for name in order.sample(list(contestants), len(contestants)):
            _finish(device)
            time.sleep(pause)
            start = clock()
            contestants[name]()
            _finish(device)
            if turn > 0:  # the first is for warming up
                times[name].append(clock() - start)
    return times


def peak_gigabytes(run: Callable[[], object], device: str) -> str:
    """The most GPU memory that a run holds beside what lies there before it: weights and inputs. Empty on a CPU."""
    if not device.startswith("cuda"):
        return ""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return f"{(torch.cuda.max_memory_allocated() - before) / 1e9:.2f}"


def describe_run(device: str) -> str:
    """Machine, versions and command, as a line above the tables."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    versions = f"PyTorch {torch.__version__}, transformers {transformers.__version__}"
    command = " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    return f"{name}, {torch.get_num_threads()} threads; {versions}; `{command}`\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def median_and_range(times: Sequence[float]) -> str:
    """As "1.23 (1.20 to 1.31)"."""
    return f"{statistics.median(times):.3g} ({min(times):.3g} to {max(times):.3g})"


def freeze_dropout(model: nn.Module) -> None:
    """Takes the chance out of training, so that two models can be compared."""
    for module in model.modules():
        for name in ("dropout", "p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


@torch.no_grad()
def _make_queries_differ(model: DetrForSegmentation) -> None:
    """Gives random weights what trained ones have: a map that varies, queries that look at different parts of it.

    As they are drawn, all queries have the same logits and masks to five digits, and a comparison would see no mix-up.
    """
    projection, maps = model.detr.model.input_projection, []
    hook = projection.register_forward_hook(lambda _module, _args, output: maps.append(output))
    model.detr(**random_images(1, (256, 320)))
    hook.remove()
    std, mean = torch.std_mean(maps[0], dim=(0, 2, 3))
    projection.weight /= std[:, None, None, None]
    projection.bias.copy_((projection.bias - mean) / std)
    for name, parameter in model.named_parameters():
        if "decoder" in name and name.endswith(("q_proj.weight", "k_proj.weight")):
            parameter.mul_(6)
        elif "bbox_attention" in name:
            parameter.mul_(4)
        elif name == "mask_head.conv1.conv.weight":
            parameter[:, model.config.d_model :] *= (
                30  # attention maps sum to 1, so that each pixel has next to nothing
            )


def _size(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
