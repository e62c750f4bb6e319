"""What a user of the package writes, to be checked by `mypy --strict`: predict, post-process, train, measure."""

from pathlib import Path

import torch
from PIL import Image

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.data import PanopticCollator, read_panoptic
from detr_panoptic.evaluation import evaluate
from detr_panoptic.visualization import draw_segments


def predict(folder: Path, picture: Path) -> dict[str, float]:
    """The score of each class that is found."""
    model = DetrPanopticForSegmentation.from_pretrained(folder)
    processor = DetrPanopticImageProcessor.from_pretrained(folder)
    image = Image.open(picture)
    inputs = processor(image, return_tensors="pt")
    with torch.inference_mode():
        output = model(**inputs)
    result = processor.post_process_panoptic_segmentation(output, target_sizes=[(image.height, image.width)])[0]
    names = model.config.id2label
    drawn = draw_segments(image, result["segmentation"], result["segments_info"], names)
    drawn.save(picture.with_suffix(".overlay.png"))
    return {names[segment["label_id"]]: segment["score"] for segment in result["segments_info"]}


def train_step(model: DetrPanopticForSegmentation, processor: DetrPanopticImageProcessor, data: Path) -> float:
    """The loss before an update."""
    records, _ = read_panoptic(data)
    batch = PanopticCollator(processor)([records[0], records[1]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    output = model.train().forward(**batch)
    if output.loss is None:
        raise ValueError("The batch has no labels.")
    output.loss.backward()
    optimizer.step()
    return float(output.loss.detach())


def measure(model: DetrPanopticForSegmentation, processor: DetrPanopticImageProcessor, data: Path) -> float:
    """PQ of one class and RQ of things."""
    evaluation = evaluate((model.eval(), processor), data, average_precision="box", batch_size=4)
    (data / "quality.md").write_text(evaluation.table())
    return evaluation.per_class["boat"].pq + evaluation.things.rq
