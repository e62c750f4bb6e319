"""The work of a prediction, stage by stage: multiplications and bytes written, transformers' model beside ours.

python benchmarks/work.py --sizes 800x1066 --kept 20 100
"""

import argparse
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from cases import markdown_table, our_model, parser, random_images, transformers_model


class StageCounter(TorchDispatchMode):
    """Counts what every operation multiplies and writes, by the stage that runs it."""

    def __init__(self, stages: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.multiplications: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        self._running = ["the rest"]
        for name, module in stages.items():
            module.register_forward_pre_hook(lambda _module, _args, name=name: self._running.append(name))
            module.register_forward_hook(lambda *_: self._running.pop() and None)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Runs and counts one operation."""
        result = func(*args, **(kwargs or {}))
        stage = self._running[-1]
        if func.overloadpacket in flop_registry:
            count: Callable = flop_registry[func.overloadpacket]
            self.multiplications[stage] += count(*args, **(kwargs or {}), out_val=result) // 2
        if not func.is_view:
            self.written[stage] += sum(leaf.nbytes for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


@torch.no_grad()
def main() -> None:
    """Prints a table per size."""
    arguments = _arguments()
    theirs = transformers_model().eval()
    ours = our_model(theirs).eval()
    for size in arguments.sizes:
        images = random_images(1, size)
        counters = {"transformers": count(theirs, their_stages(theirs), **images)}
        for kept in arguments.kept:
            counters[f"ours, {kept} kept"] = count(ours, our_stages(ours), **images, mask_queries=kept)
        print(f"### {size[0]}x{size[1]}: GMAC (GB written)\n")
        print(markdown_table(["", *counters], table_rows(list(counters.values()))))


def count(model: nn.Module, stages: Mapping[str, nn.Module], **inputs: Any) -> StageCounter:
    """Runs the model once."""
    with StageCounter(stages) as counter:
        model(**inputs)
    return counter


def their_stages(model: Any) -> dict[str, nn.Module]:
    """The stages of transformers' model."""
    detector = model.detr.model
    stages = (detector.backbone, detector.encoder, detector.decoder, model.bbox_attention, model.mask_head)
    return dict(zip(STAGES, stages, strict=True))


def our_stages(model: Any) -> dict[str, nn.Module]:
    """The same of ours."""
    detector = model.model
    stages = (detector.backbone, detector.encoder, detector.decoder, model.mask_attention, model.mask_head)
    return dict(zip(STAGES, stages, strict=True))


STAGES = ("backbone", "encoder", "decoder", "attention maps", "mask head")


def table_rows(counters: list[StageCounter]) -> list[list[str]]:
    """A row per stage, and their sum."""
    rows = [
        [stage, *(_cell(c.multiplications[stage], c.written[stage]) for c in counters)]
        for stage in (*STAGES, "the rest")
    ]
    return [*rows, ["sum", *(_cell(c.multiplications.total(), c.written.total()) for c in counters)]]


def _cell(multiplications: int, written: int) -> str:
    return f"{multiplications / 1e9:.2f} ({written / 1e9:.2f})"


def _arguments() -> argparse.Namespace:
    arguments = parser(str(__doc__).partition("\n")[0], size="800x1066")
    arguments.add_argument("--kept", nargs="+", type=int, default=[20, 100])
    return arguments.parse_args()


if __name__ == "__main__":
    main()
