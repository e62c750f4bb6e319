"""Model cards: Markdown with a metadata block, written from what is known about a model.

The metadata tell the Hub the model's task, license, datasets and quality (https://huggingface.co/docs/hub/model-cards).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..data.hub_names import hub_name
from ..data.plain_text import markdown, one_line
from ..evaluation import Evaluation
from ..evaluation.tables import format_table, percent
from ..modeling_detr_panoptic import DetrPanopticForSegmentation

CARD = "README.md"
METADATA: dict[str, Any] = {
    "library_name": "transformers",
    "pipeline_tag": "image-segmentation",
    "license": "apache-2.0",  # of the code, which every repository contains
    "tags": ["panoptic-segmentation", "detr", "detr_panoptic"],
    "metrics": ["panoptic_quality"],
}
QUALITY_TITLE = "Panoptic quality"
UNKNOWN = "Not recorded."
USAGE = """
from transformers import pipeline

segmenter = pipeline("image-segmentation", model="{repository}", trust_remote_code=True)
segmenter("photo.jpg")  # `import detr_panoptic` makes trust_remote_code unnecessary
"""
TEMPLATE = Path(__file__).with_name("card_template.md")


@dataclass(frozen=True, kw_only=True)
class MeasuredQuality:
    """The PQ of a model on a dataset, as `evaluate` measures it.

    Args:
        dataset: name of the dataset.
        how: other circumstances, such as the number of images and the threshold.
        groups: PQ, SQ and RQ in [0, 1] of "all", "things" and "stuff".
        classes: PQ in [0, 1] of each class that occurred.
        on_training_images: whether the images were used for training. The card says so, and the metadata, which the
            Hub ranks models by, do not list the numbers.
    """

    dataset: str
    how: str = ""
    groups: Mapping[str, tuple[float, float, float]]
    classes: Mapping[str, float]
    on_training_images: bool = False

    @classmethod
    def of(cls, evaluation: str | Path | Evaluation, **changes: Any) -> "MeasuredQuality":
        """Takes the numbers of an `Evaluation`, or of its output folder or `metrics.json`; changes set other fields.

        Raises:
            ValueError: there are no metrics, or they are not from `evaluate`.
        """
        try:
            if isinstance(evaluation, (str, Path)):
                file = Path(evaluation) / "metrics.json" if Path(evaluation).is_dir() else Path(evaluation)
                metrics = json.loads(file.read_text(encoding="utf-8"))
            else:
                metrics = evaluation.metrics
            skipped = f", {len(metrics['skipped'])} unreadable ones left out" if metrics["skipped"] else ""
            least = metrics["settings"]["threshold"]
            threshold = "a threshold for each class" if isinstance(least, list) else f"threshold {least}"
            threshold += ", score-weighted merging" if metrics["settings"].get("merging") == "score_weighted" else ""
            groups = metrics["panoptic_quality"].items()
            fields = {
                "dataset": metrics["dataset"],
                "how": f"{metrics['images']} images, {threshold}{skipped}",
                "groups": {name: (row["pq"], row["sq"], row["rq"]) for name, row in groups if row["n"]},
                "classes": {
                    row["name"]: row["pq"] for row in metrics["per_class"] if row["tp"] + row["fp"] + row["fn"]
                },
            }
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"`evaluation` must be the result of `evaluate`, got {evaluation}: {error}") from error
        return cls(**fields | changes)


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What is known about a model besides its configuration.

    Args:
        name: of the model.
        repository: name on the Hub, or a path, for the example code.
        data: a description of each set of images.
        recipe: lines about the training.
        quality: what was measured.
        usage: Python code that runs the model. None: transformers' pipeline.
        picture: a file beside the card that shows predictions.
        datasets: names on the Hub of the training data.
        base_model: name on the Hub of the model that training started from.
        license: identifier, as in https://huggingface.co/docs/hub/repositories-licenses.
    """

    name: str
    repository: str = "PATH_OR_NAME_OF_THIS_REPOSITORY"
    data: Mapping[str, str] = field(default_factory=dict)
    recipe: Sequence[str] = ()
    quality: MeasuredQuality | None = None
    usage: str | None = None
    picture: str | None = None
    datasets: Sequence[str] = ()
    base_model: str | None = None
    license: str = METADATA["license"]


def build_card(model: DetrPanopticForSegmentation, facts: CardFacts) -> ModelCard:
    """Returns the card of a model.

    Examples:
        >>> from detr_panoptic import DetrPanopticForSegmentation
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> model = DetrPanopticForSegmentation.from_pretrained(BUNDLED)
        >>> quality = MeasuredQuality.of(BUNDLED, dataset="generated scenes")
        >>> card = build_card(model, CardFacts(name="scenes", quality=quality))
        >>> card.data.eval_results[0].metric_value
        72.08
    """
    config = model.config
    kinds: dict[str, list[str]] = {"Things": [], "Stuff": []}
    for label, name in config.id2label.items():
        kinds["Stuff" if int(label) in config.stuff_label_ids else "Things"].append(markdown(name))
    architecture = (
        f"{config.backbone}{' (DC5)' if config.dilation else ''}, {config.encoder_layers} encoder and "
        f"{config.decoder_layers} decoder layers, {config.num_queries} queries, "
        f"{model.num_parameters() / 1e6:.1f} M parameters"
    )
    metadata = ModelCardData(
        base_model=facts.base_model,
        datasets=list(facts.datasets) or None,
        model_name=facts.name,
        eval_results=_evaluation_results(facts.quality),
        **METADATA | {"license": facts.license},
    )
    data = [f"- {markdown(name)}: {markdown(words)}" for name, words in facts.data.items()]
    text = TEMPLATE.read_text(encoding="utf-8").format(
        name=markdown(facts.name),
        architecture=markdown(architecture),
        picture=f"![image, annotation and prediction of held-out images]({facts.picture})" if facts.picture else "",
        usage=(facts.usage or USAGE.format(repository=facts.repository)).strip(),
        classes="\n\n".join(f"{kind} ({len(names)}): {', '.join(names)}." for kind, names in kinds.items()),
        data="\n".join(data) or UNKNOWN,
        recipe="\n".join(("```", *map(one_line, facts.recipe), "```")) if facts.recipe else UNKNOWN,
        quality=_describe_quality(facts.quality),
    )
    text = re.sub(r"\n{3,}", "\n\n", text)
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}")


def write_card(folder: str | Path, model: DetrPanopticForSegmentation, **facts: Any) -> Path:
    """Writes `README.md` beside a saved model and returns its path.

    The keywords are fields of `CardFacts`. The folder's name is the model's, unless the facts have one.
    """
    path = Path(folder) / CARD
    card = build_card(model, CardFacts(**{"name": path.resolve().parent.name, **facts}))
    path.write_text(str(card), encoding="utf-8")
    return path


def complete_card(text: str, facts: CardFacts, *, license_name: str | None = None) -> ModelCard:
    """Prepares an existing card for a repository: adds missing metadata, and replaces license and quality if given."""
    card = ModelCard(text.replace(CardFacts.repository, facts.repository), ignore_metadata_errors=True)
    for key, value in METADATA.items():
        card.data[key] = card.data.get(key) or value
    card.data["license"] = license_name or card.data["license"]
    if facts.quality is not None:
        card.data["model_name"] = facts.name
        card.data["eval_results"] = _evaluation_results(facts.quality)
        section = f"## {QUALITY_TITLE}\n\n{_describe_quality(facts.quality)}\n\n"
        present = re.compile(rf"^## {QUALITY_TITLE}\n.*?(?=^## |\Z)", flags=re.MULTILINE | re.DOTALL)
        text, count = present.subn(lambda _: section, card.text)
        card.text = (text if count else f"{text.rstrip()}\n\n{section}").rstrip() + "\n"
    return card


def _evaluation_results(quality: MeasuredQuality | None) -> list[EvalResult] | None:
    """Returns the numbers in percent as the Hub lists them. None if nothing was measured on held-out images."""
    if quality is None or quality.on_training_images:
        return None
    dataset_type = hub_name(quality.dataset.split(" ")[0]) or re.sub(r"[^\w./-]+", "-", quality.dataset)
    names = {"all": "PQ", "things": "PQ of things", "stuff": "PQ of stuff"}
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Panoptic segmentation",
            dataset_type=dataset_type,
            dataset_name=quality.dataset,
            metric_type="panoptic_quality",
            metric_name=names[group],
            metric_value=round(100 * values[0], 2),
        )
        for group, values in quality.groups.items()
    ]


def _describe_quality(quality: MeasuredQuality | None) -> str:
    if quality is None:
        return "Not measured."
    training = "**training images** of " if quality.on_training_images else ""
    how = ", ".join(filter(None, (quality.dataset, quality.how)))
    rows = [[name, *map(percent, row)] for name, row in quality.groups.items()]
    groups = format_table(["classes", "PQ", "SQ", "RQ"], rows)
    ordered = sorted(quality.classes.items(), key=lambda item: -item[1])
    classes = format_table(["class", "PQ"], [[name, percent(value)] for name, value in ordered], escape=markdown)
    return (
        f"Measured with `detr_panoptic.evaluate` on {training}{markdown(how)}, in percent:\n\n{groups}\n\n"
        f"<details><summary>by class</summary>\n\n{classes}\n\n</details>"
    )
