"""`detr-panoptic evaluate`: a model's panoptic quality and average precision on a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..inference.long_runs import add_run_options, check_run_options, journal_folder, processes, run_over
from ..inference.old_loading import fingerprint, load_model, model_categories
from ..training.faults import held_output
from .frame import USER_ERROR, CommandError, add_command
from .sources import add_source_options, read_source, source_options

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    import numpy as np
    from accelerate import PartialState

    from ..data import PanopticData
    from ..data.categories import Categories
    from ..evaluation.journal import Journal
    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
    from ..inference.loop import Batch
    from ..modeling_detr_panoptic import DetrPanopticForSegmentation
    from .frame import CommandParser

AP_KINDS = {"none": (), "box": ("box",), "mask": ("box", "mask")}
MAPS = "panoptic"  # folder of the predicted maps, and name of the JSON file beside it
DESCRIPTION = """
Measure a model on a dataset: PQ (panoptic quality, equal to the official evaluator's to the last bit) with SQ and RQ,
of all classes, of things, of stuff and of each class; box and mask AP of things. The model's classes are matched with
the data's by name. The output folder gets

  metrics.json, metrics.md   all numbers
  panoptic.json, panoptic/   the predictions in COCO's panoptic format, for any other evaluator
  worst_and_best.png         images with annotation and prediction side by side

On several processes: accelerate launch scripts/evaluate.py with the same options. A run that was interrupted goes on
where it was when it is started again. Neither changes a number.
"""
EXAMPLES = """
detr-panoptic evaluate --model my_model --data my_data
detr-panoptic evaluate --model my_model --data coco --split val2017 --output val2017 --workers 4
detr-panoptic evaluate --model my_model --data my_data --limit 200 --batch-size 8 --average-precision none
"""


def register(subparsers: argparse._SubParsersAction[CommandParser]) -> None:
    """Add the command and its options."""
    parser = add_command(
        subparsers, "evaluate", run, summary="measure a model", description=DESCRIPTION, examples=EXAMPLES
    )
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="folder of a saved model, or its name on the Hugging Face Hub"
    )
    parser.add_argument("--data", required=True, metavar="SOURCE", help="what `train --data` takes")
    add_source_options(parser)
    parser.add_argument(
        "--output", type=Path, default=Path("evaluation"), metavar="DIR", help="folder for the results"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="SCORE",
        help="of PQ: drop segments with a lower score (default: the model's)",
    )
    parser.add_argument(
        "--average-precision",
        choices=AP_KINDS,
        default="mask",
        help="mask: box and mask AP, for which every query needs a mask; box: costs next to nothing",
    )
    add_run_options(parser, on_error="stop")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; 0 if every image was measured."""
    check_run_options(arguments)
    data = read_source(arguments.data, **source_options(arguments))
    with processes(arguments.device) as (state, device):
        model, processor = load_model(arguments.model, device, dtype=arguments.dtype)
        with held_output(arguments.output, state):
            journal = _measure_all(arguments, data, model, processor, state)
    return USER_ERROR if journal.failures else 0


def _measure_all(
    arguments: argparse.Namespace,
    data: PanopticData,
    model: DetrPanopticForSegmentation,
    processor: DetrPanopticImageProcessor,
    state: PartialState,
) -> Journal:
    from ..evaluation.journal import Journal
    from ..evaluation.report import write_report
    from ..inference.old_pictures import DatasetPictures
    from ..model_card import public_name

    pictures = DatasetPictures(data.records, with_truth=True)
    threshold = processor.threshold if arguments.threshold is None else arguments.threshold
    settings = {
        "command": "evaluate",
        "model": fingerprint(model, processor),
        "data": pictures.fingerprint(),
        "images": len(pictures),
        "threshold": threshold,
        "dtype": str(model.dtype),
        "batch_size": arguments.batch_size,
        "average_precision": arguments.average_precision,
    }
    journal = Journal(journal_folder(arguments.output), settings, length=len(pictures), process=state.process_index)
    kinds = AP_KINDS[arguments.average_precision]
    measure = Measurement(
        processor,
        label_map(model_categories(model.config).id2label, data.categories),
        data.categories,
        threshold=threshold,
        kinds=kinds,
        maps=arguments.output / MAPS,
    )
    mask_queries = "all" if "mask" in kinds else None
    speed = run_over(pictures, model, processor, journal, state, arguments, measure, mask_queries)
    if state.is_main_process:
        dataset = public_name(arguments.data, arguments.split)
        write_report(arguments.output, journal, pictures, data.categories, dataset=dataset, kinds=kinds, speed=speed)
    state.wait_for_everyone()
    return journal


def label_map(id2label: Mapping[int, str], categories: Categories) -> dict[int, int]:
    """The data's label id of each of the model's that the data has, by name.

    Raises:
        CommandError: the data has a class that the model lacks.
    """
    of_name = {name: label for label, name in categories.id2label.items()}
    lacking = of_name.keys() - set(id2label.values())
    if lacking:
        names = [name for name in categories.names if name in lacking]
        shown = ", ".join(map(repr, names[:5])) + (" …" if len(names) > 5 else "")
        raise CommandError(
            f"The model has no class for {len(names)} of the {len(categories)} classes of the data: {shown}. "
            f"Classes are matched by name."
        )
    return {label: of_name[name] for label, name in id2label.items() if name in of_name}


class Measurement:
    """Makes the journal's entries of a batch: what is predicted, and how it compares with the truth.

    Args:
        processor: the model's.
        labels: what `label_map` returns. Segments of the model's other classes become void: what the data does not
            know, it cannot judge.
        categories: of the data.
        threshold: of PQ.
        kinds: of AP.
        maps: folder of the predicted maps; made if it does not exist.
    """

    def __init__(
        self,
        processor: DetrPanopticImageProcessor,
        labels: Mapping[int, int],
        categories: Categories,
        *,
        threshold: float,
        kinds: tuple[str, ...],
        maps: Path,
    ) -> None:
        """Keep the parts."""
        self.processor = processor
        self.labels = labels
        self.things = {label: own for label, own in labels.items() if categories.is_thing[own]}
        self.categories = categories
        self.threshold = threshold
        self.kinds = kinds
        self.maps = maps
        maps.mkdir(parents=True, exist_ok=True)

    def __call__(self, batch: Batch, outputs: Any) -> Iterator[dict[str, Any]]:
        """An entry for each image, after its map was written."""
        predictions = self.processor.post_process_panoptic_segmentation(
            outputs, self.threshold, target_sizes=batch.sizes
        )
        for place, (record, prediction) in enumerate(zip(batch.records, predictions, strict=True)):
            entry = self._compare(record, prediction)
            if self.kinds:
                entry |= self._instances(record, outputs, place)
            yield entry

    def _compare(self, record: Mapping[str, Any], prediction: Mapping[str, Any]) -> dict[str, Any]:
        from ..evaluation.model_evaluation import truth_ids
        from ..evaluation.panoptic_quality import count_image
        from ..inference.results import coco_annotation, write_segmentation

        ids, segments = self._in_labels_of_the_data(prediction)
        file_name = f"{record['image_id']:012d}.png"
        write_segmentation(self.maps / file_name, ids)
        counts = count_image(truth_ids(record), record["segments_info"], ids, segments, self.categories.category_ids)
        annotation = coco_annotation(
            segments,
            category_ids=self.categories.category_ids,
            stuff_label_ids=self.categories.stuff_label_ids,
            image_id=record["image_id"],
            file_name=file_name,
        )
        return {"size": ids.shape, "annotation": annotation, "counts": counts._asdict()}

    def _instances(self, record: Mapping[str, Any], outputs: Any, place: int) -> dict[str, Any]:
        from ..evaluation.average_precision import detected_instances, true_instances
        from ..evaluation.model_evaluation import truth_ids

        truth = truth_ids(record)
        return {
            "truth": true_instances(truth, record["segments_info"], self.categories.is_thing),
            "detections": detected_instances(
                outputs, place, truth.shape, self.things, with_masks="mask" in self.kinds
            ),
        }

    def _in_labels_of_the_data(self, prediction: Mapping[str, Any]) -> tuple[np.ndarray, list[dict[str, Any]]]:
        import numpy as np

        ids = prediction["segmentation"].cpu().numpy()
        known = [segment for segment in prediction["segments_info"] if segment["label_id"] in self.labels]
        if len(known) < len(prediction["segments_info"]):
            ids = np.where(np.isin(ids, [segment["id"] for segment in known]), ids, 0)
        return ids, [{**segment, "label_id": self.labels[segment["label_id"]]} for segment in known]
