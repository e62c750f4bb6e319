"""Every query as a detection, whatever merging makes of it: what average precision is measured on.

As in the reference, the class of a query is its most probable one apart from "no object", its score is that
probability, and no threshold applies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as rle
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the field's name for it

from ..box_ops import at_least_float32, cxcywh_to_xyxy
from ..panoptic_merging import ImageSizes, crop_to_image

QUERIES_AT_ONCE = 16  # masks of the image's size in memory


def detect(outputs: Any, index: int, size: tuple[int, int], *, with_masks: bool) -> list[dict[str, Any]]:
    """Returns the detections of one image (height, width) of a batch of outputs, which has all masks if `with_masks`.

    Each query gets `label_id`, `score`, `bbox` (x, y, width, height in pixels) and with masks `counts`, the COCO
    run-length encoding as text.
    """
    scores, labels = outputs.logits[index].float().softmax(-1)[:, :-1].max(-1)
    boxes = cxcywh_to_xyxy(outputs.pred_boxes[index].float()) * scores.new_tensor([size[1], size[0]]).repeat(2)
    columns = zip(labels.tolist(), scores.tolist(), boxes.tolist(), strict=True)
    detections: list[dict[str, Any]] = [
        {"label_id": label, "score": score, "bbox": [left, top, right - left, bottom - top]}
        for label, score, (left, top, right, bottom) in columns
    ]
    if with_masks:
        image_size, canvas_size = (tuple(pair[index].tolist()) for pair in (outputs.image_sizes, outputs.canvas_sizes))
        sizes = ImageSizes(image_size, canvas_size, size)
        for start in range(0, len(detections), QUERIES_AT_ONCE):
            some = slice(start, start + QUERIES_AT_ONCE)
            masks = query_masks(outputs.pred_masks[index][some], sizes)
            # pycocotools expects (H, W, N) in Fortran order.
            codes = rle.encode(np.asfortranarray(masks.cpu().numpy().view(np.uint8)))
            for detection, code in zip(detections[some], codes, strict=True):
                detection["counts"] = code["counts"].decode("ascii")
    return detections


def query_masks(masks: Tensor, sizes: ImageSizes) -> Tensor:
    """Returns each query's own mask, (H, W, N) bool of the target size, of logits (N, h, w) of the padded canvas.

    Follows PostProcessSegm of facebookresearch/detr (29901c5): a probability above one half at the processed size, and
    its nearest pixel at the target size; here, masks of a padded batch are cropped to the image before.
    """
    logits = at_least_float32(crop_to_image(masks, sizes))[None]
    processed = F.interpolate(logits, size=sizes.processed, mode="bilinear", align_corners=False) > 0
    return F.interpolate(processed.float(), size=sizes.target, mode="nearest")[0].bool().permute(1, 2, 0).contiguous()
