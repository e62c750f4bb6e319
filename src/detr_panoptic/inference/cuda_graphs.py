"""A model on a GPU as CUDA graphs: one for each shape of the input, which the CPU starts as a single operation."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..box_ops import fetch
from ..mask_head import object_scores
from ..modeling_detr_panoptic import DetrPanopticForSegmentation, DetrPanopticSegmentationOutput

MAX_SHAPES = 8  # graphs that are kept; the one that was used longest ago goes first
MASKS = 32  # per image in a graph; images in which more queries are kept run without a graph
WARM_UP = 3  # runs before a capture, in which libraries choose their kernels
OUTPUTS = ("logits", "pred_boxes", "pred_masks", "image_sizes", "canvas_sizes")

Replay = Callable[[Mapping[str, Tensor]], dict[str, Any]]


class CudaGraphs:
    """Runs a model whose weights stay as they are; called as the model is, it returns what predictions need.

    All graphs share a pool of memory, so a further shape costs little more than its inputs and outputs.

    Args:
        model: in evaluation mode, on a GPU.
    """

    def __init__(self, model: DetrPanopticForSegmentation) -> None:
        self.model = model
        self._graphs: OrderedDict[Any, Replay] = OrderedDict()
        self._pool: Any = None

    @torch.no_grad()
    def __call__(
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, *, mask_queries: str | int | None = None
    ) -> Any:
        """Returns logits, boxes, masks and sizes of a batch; see `DetrPanopticForSegmentation.forward`."""
        with torch.cuda.device_of(pixel_values):  # graphs, streams and pools are those of the current one
            return self._run({"pixel_values": pixel_values, "pixel_mask": pixel_mask}, mask_queries)

    def _run(self, given: Mapping[str, Tensor | None], mask_queries: str | int | None) -> Any:
        wanted = self.model.config.mask_queries if mask_queries is None else mask_queries
        inputs = {name: tensor for name, tensor in given.items() if tensor is not None}
        masks: Any = min(MASKS, self.model.config.num_queries) if wanted == "kept" else wanted
        key = (masks, *((name, tuple(tensor.shape), tensor.dtype) for name, tensor in inputs.items()))
        if key not in self._graphs:
            while len(self._graphs) >= MAX_SHAPES:
                self._graphs.popitem(last=False)
            self._graphs[key] = self._capture(inputs, masks)
        self._graphs.move_to_end(key)
        outputs = self._graphs[key](inputs)
        if wanted == "kept":
            (counts,) = fetch(object_scores(outputs["logits"])[1].sum(1))
            if int(counts.max()) > masks:
                return self.model(**inputs, mask_queries="kept")
        return DetrPanopticSegmentationOutput(**outputs)

    def _capture(self, inputs: Mapping[str, Tensor], masks: str | int) -> Replay:
        """Captures the forward of inputs of one shape."""
        own = {name: tensor.clone() for name, tensor in inputs.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.model(**own, mask_queries=masks)
        torch.cuda.current_stream().wait_stream(stream)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            captured = self.model(**own, mask_queries=masks)
        made = {name: captured[name] for name in OUTPUTS}

        def replay(given: Mapping[str, Tensor]) -> dict[str, Any]:
            for name, tensor in given.items():
                own[name].copy_(tensor, non_blocking=True)
            graph.replay()
            return {name: tensor.clone() for name, tensor in made.items()}  # the next replay writes over them

        return replay
