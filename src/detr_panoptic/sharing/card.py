"""Model cards: Markdown with a metadata block, written from what is known about a model.

The metadata tell the Hub the model's task, license, datasets and quality (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..data.hub_names import hub_name
from ..data.plain_text import markdown, one_line
from ..evaluation.results import format_table, percent

if TYPE_CHECKING:
    from ..evaluation import Evaluation
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
    def of(cls, evaluation: str | Path | Evaluation, **changes: Any) -> MeasuredQuality:
        """Takes the numbers of an `Evaluation`, or of the output folder or `metrics.json` of one.

        Args:
            evaluation: the evaluation or its path.
            **changes: fields to set to other values, such as `dataset`.

        Raises:
            ValueError: there are no metrics, or they are not from `evaluate`.
        """
        try:
            metrics = _read_metrics(evaluation) if isinstance(evaluation, (str, Path)) else evaluation.metrics
            skipped = f", {len(metrics['skipped'])} unreadable ones left out" if metrics["skipped"] else ""
            groups = metrics["panoptic_quality"].items()
            fields = {
                "dataset": metrics["dataset"],
                "how": f"{metrics['images']} images, threshold {metrics['settings']['threshold']}{skipped}",
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

    Example:
        >>> from detr_panoptic import DetrPanopticForSegmentation
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> model = DetrPanopticForSegmentation.from_pretrained(BUNDLED)
        >>> quality = MeasuredQuality.of(BUNDLED, dataset="generated scenes")
        >>> card = build_card(model, CardFacts(name="scenes", quality=quality))
        >>> card.data.eval_results[0].metric_value
        72.08
    """
    config, stuff = model.config, set(model.config.stuff_label_ids)
    is_thing = {name: int(label) not in stuff for label, name in (config.id2label or {}).items()}
    architecture = (
        f"{config.backbone}{' (DC5)' if config.dilation else ''}, {config.encoder_layers} encoder and "
        f"{config.decoder_layers} decoder layers, {config.num_queries} queries, "
        f"{model.num_parameters() / 1e6:.1f} M parameters"
    )
    metadata = ModelCardData(
        base_model=facts.base_model,
        datasets=list(facts.datasets) or None,
        model_name=facts.name,
        eval_results=evaluation_results(facts.quality),
        **METADATA | {"license": facts.license},
    )
    data = [f"- {markdown(name)}: {markdown(words)}" for name, words in facts.data.items()]
    text = TEMPLATE.read_text(encoding="utf-8").format(
        name=markdown(facts.name),
        architecture=markdown(architecture),
        picture=f"![image, annotation and prediction of held-out images]({facts.picture})" if facts.picture else "",
        usage=(facts.usage or USAGE.format(repository=facts.repository)).strip(),
        classes=_describe_classes(is_thing),
        data="\n".join(data) or UNKNOWN,
        recipe="\n".join(("```", *map(one_line, facts.recipe), "```")) if facts.recipe else UNKNOWN,
        quality_title=QUALITY_TITLE,
        quality=_describe_quality(facts.quality),
    )
    text = re.sub(r"\n{3,}", "\n\n", text)
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}")


def write_card(folder: str | Path, model: DetrPanopticForSegmentation, **facts: Any) -> Path:
    """Writes `README.md` beside a saved model.

    Args:
        folder: that of the model. Its name is the model's, unless the facts have one.
        model: the model.
        **facts: fields of `CardFacts`.

    Returns:
        The file.
    """
    path = Path(folder) / CARD
    card = build_card(model, CardFacts(**{"name": path.resolve().parent.name, **facts}))
    path.write_text(str(card), encoding="utf-8")
    return path


def complete_card(text: str, facts: CardFacts, *, license_name: str | None = None) -> ModelCard:
    """Prepares an existing card for a repository: fills in missing metadata and replaces the measured quality.

    Args:
        text: the card.
        facts: name, repository and quality are used. Without a quality, the card keeps its own.
        license_name: replaces the card's license.
    """
    card = ModelCard(text.replace(CardFacts.repository, facts.repository), ignore_metadata_errors=True)
    for key, value in METADATA.items():
        if not card.data.get(key):
            card.data[key] = value
    if license_name is not None:
        card.data["license"] = license_name
    if facts.quality is not None:
        card.data["model_name"] = facts.name
        card.data["eval_results"] = evaluation_results(facts.quality)
        card.text = _replace_section(card.text, QUALITY_TITLE, _describe_quality(facts.quality))
    return card


def evaluation_results(quality: MeasuredQuality | None) -> list[EvalResult] | None:
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


def _read_metrics(path: str | Path) -> dict[str, Any]:
    file = Path(path) / "metrics.json" if Path(path).is_dir() else Path(path)
    return json.loads(file.read_text(encoding="utf-8"))


def _describe_classes(is_thing: Mapping[str, bool]) -> str:
    lines = []
    for kind, wanted in (("Things", True), ("Stuff", False)):
        names = [markdown(name) for name, thing in is_thing.items() if thing is wanted]
        lines.append(f"{kind} ({len(names)}): {', '.join(names)}.")
    return "\n\n".join(lines)


def _describe_quality(quality: MeasuredQuality | None) -> str:
    if quality is None:
        return "Not measured."
    training = "**training images** of " if quality.on_training_images else ""
    how = ", ".join(filter(None, (quality.dataset, quality.how)))
    groups = format_table(
        ["classes", "PQ", "SQ", "RQ"], [[name, *map(percent, row)] for name, row in quality.groups.items()]
    )
    ordered = sorted(quality.classes.items(), key=lambda item: -item[1])
    classes = format_table(["class", "PQ"], [[name, percent(value)] for name, value in ordered], escape=markdown)
    return (
        f"Measured with `detr_panoptic.evaluate` on {training}{markdown(how)}, in percent:\n\n{groups}\n\n"
        f"<details><summary>by class</summary>\n\n{classes}\n\n</details>"
    )


def _replace_section(text: str, title: str, body: str) -> str:
    """Replaces the text below a second-level title, or appends the section."""
    section = f"## {title}\n\n{body}\n"
    found = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    if found is None:
        return f"{text.rstrip()}\n\n{section}"
    return f"{text[: found.start()]}{section}\n{text[found.end() :]}".rstrip() + "\n"
