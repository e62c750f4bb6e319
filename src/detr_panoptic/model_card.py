"""Model cards: what the Hub's page of a model says, from what is known of it.

A card is Markdown under a block of metadata. The metadata place the model on the Hub: its task, license, datasets and
quality (https://huggingface.co/docs/hub/model-cards). What is not known is said to be unknown.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .data.hub_names import hub_name
from .data.plain_text import markdown, one_line

LICENSE = "apache-2.0"
"""Of the code that every repository carries."""
METADATA = {
    "library_name": "transformers",
    "pipeline_tag": "image-segmentation",
    "license": LICENSE,
    "tags": ("panoptic-segmentation", "detr", "detr_panoptic"),
    "metrics": ("panoptic_quality",),
}
REPOSITORY_PLACEHOLDER = "PATH_OR_NAME_OF_THIS_REPOSITORY"
QUALITY_TITLE = "Panoptic quality"
UNKNOWN = "Not recorded."
TEXT = """
# {name}

DETR for panoptic segmentation ([arXiv 2005.12872](https://arxiv.org/abs/2005.12872)), made with the package
`detr-panoptic`: {architecture}.

{picture}

## Use

```python
from transformers import pipeline

segmenter = pipeline("image-segmentation", model="{repository}", trust_remote_code=True)
segmenter("photo.jpg")
```

With `pip install detr-panoptic` and `import detr_panoptic` it needs no `trust_remote_code`.

## Classes

{classes}

## Data

{data}

## Recipe

{recipe}

## {quality_title}

{quality}

## Limits

- It knows the classes above, on images like those that it was trained on.
- Each query owns the pixels where its mask is the largest: thin and small things are lost first.
- Scores are class probabilities of queries, not calibrated probabilities of pixels.
- How quality differs between places, cameras or groups of people was not measured.
"""


@dataclass(frozen=True, kw_only=True)
class MeasuredQuality:
    """PQ of a model on a dataset.

    Args:
        dataset: its name, for readers.
        hub_dataset: its name on the Hub, if it is there.
        how: what else decides about the numbers, such as the threshold.
        groups: PQ, SQ and RQ in [0, 1] of "all", "things" and "stuff".
        classes: PQ in [0, 1] of each class that occurred.
    """

    dataset: str
    hub_dataset: str | None = None
    how: str = ""
    groups: Mapping[str, tuple[float, float, float]]
    classes: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a card says.

    Args:
        name: of the model.
        architecture: a phrase about the network.
        is_thing: for the name of each class, whether it is a thing.
        repository: where readers find the model.
        data: for each set of images, a description.
        recipe: lines about the training.
        quality: what was measured.
        picture: file beside the card, with predictions.
        datasets: names on the Hub of what it was trained on.
        base_model: name on the Hub of the model that training started from.
        license: identifier of the Hub, https://huggingface.co/docs/hub/repositories-licenses.
    """

    name: str
    architecture: str
    is_thing: Mapping[str, bool]
    repository: str = REPOSITORY_PLACEHOLDER
    data: Mapping[str, str] = field(default_factory=dict)
    recipe: Sequence[str] = ()
    quality: MeasuredQuality | None = None
    picture: str | None = None
    datasets: Sequence[str] = ()
    base_model: str | None = None
    license: str = LICENSE


def model_card(model: Any, name: str, **known: Any) -> ModelCard:
    """Builds the card of a model.

    Args:
        model: `DetrPanopticForSegmentation`.
        name: of the model.
        **known: fields of `ModelFacts`: data, recipe, quality, picture and others.
    """
    config, stuff = model.config, set(model.config.stuff_label_ids)
    is_thing = {label_name: int(label) not in stuff for label, label_name in (config.id2label or {}).items()}
    architecture = (
        f"{config.backbone}{' (DC5)' if config.dilation else ''}, {config.encoder_layers} encoder and "
        f"{config.decoder_layers} decoder layers, {config.num_queries} queries, "
        f"{model.num_parameters() / 1e6:.1f} M parameters"
    )
    return build_card(ModelFacts(name=name, architecture=architecture, is_thing=is_thing, **known))


def build_card(facts: ModelFacts) -> ModelCard:
    """The card of a model."""
    data = [f"- {markdown(name)}: {markdown(words)}" for name, words in facts.data.items()]
    metadata = ModelCardData(
        base_model=facts.base_model,
        datasets=list(facts.datasets) or None,
        model_name=facts.name,
        eval_results=None if facts.quality is None else evaluation_results(facts.quality),
        **_defaults() | {"license": facts.license},
    )
    picture = f"![image, annotation and prediction of held-out images]({facts.picture})" if facts.picture else ""
    text = TEXT.format(
        name=markdown(facts.name),
        architecture=markdown(facts.architecture),
        picture=picture,
        repository=facts.repository,
        classes=describe_classes(facts.is_thing),
        data="\n".join(data) or UNKNOWN,
        recipe="\n".join(("```", *map(one_line, facts.recipe), "```")) if facts.recipe else UNKNOWN,
        quality_title=QUALITY_TITLE,
        quality=describe_quality(facts.quality),
    )
    text = re.sub(r"\n{3,}", "\n\n", text)
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n{text}")


def complete_card(
    text: str, *, name: str, repository: str, license_name: str | None = None, quality: MeasuredQuality | None = None
) -> ModelCard:
    """A card that somebody wrote, for its place on the Hub: what it says stays, what it lacks comes in.

    Args:
        text: of the card.
        name: of the model.
        repository: on the Hub.
        license_name: replaces the card's own; None: that, or else the code's.
        quality: takes the place of the section about quality, or becomes one.
    """
    card = ModelCard(text.replace(REPOSITORY_PLACEHOLDER, repository), ignore_metadata_errors=True)
    for key, value in _defaults().items():
        if not card.data.get(key):
            card.data[key] = value
    if license_name is not None:
        card.data["license"] = license_name
    if quality is not None:
        card.data["model_name"] = name
        card.data["eval_results"] = evaluation_results(quality)
        card.text = replace_section(card.text, QUALITY_TITLE, describe_quality(quality))
    return card


def describe_classes(is_thing: Mapping[str, bool]) -> str:
    """The names of things and of stuff, folded away if there are many."""
    lines = []
    for kind, wanted in (("Things", True), ("Stuff", False)):
        names = [markdown(name) for name, thing in is_thing.items() if thing is wanted]
        lines.append(f"{kind} ({len(names)}): {', '.join(names)}.")
    return "\n\n".join(lines)


def describe_quality(quality: MeasuredQuality | None) -> str:
    """Tables in percent, or that there are none."""
    if quality is None:
        return "Not measured."
    groups = [f"| {name} | {' | '.join(map(percent, values))} |" for name, values in quality.groups.items()]
    how = ", ".join(filter(None, (quality.dataset, quality.how)))
    return "\n".join(
        (
            "Measured with `detr_panoptic.evaluation` (equal to the official evaluator to the last bit) on "
            f"{markdown(how)}, in percent:",
            "",
            *("| | PQ | SQ | RQ |", "|---|---|---|---|", *groups),
            "",
            "<details><summary>by class</summary>",
            "",
            *class_table(quality.classes),
            "",
            "</details>",
        )
    )


def class_table(classes: Mapping[str, float]) -> list[str]:
    """PQ of each class, the best first, as Markdown."""
    ordered = sorted(classes.items(), key=lambda item: -item[1])
    return ["| class | PQ |", "|---|---|", *[f"| {markdown(name)} | {percent(value)} |" for name, value in ordered]]


def evaluation_results(quality: MeasuredQuality) -> list[EvalResult]:
    """The numbers as the Hub lists them on the model's page, in percent."""
    names = {"all": "PQ", "things": "PQ of things", "stuff": "PQ of stuff"}
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Panoptic segmentation",
            dataset_type=quality.hub_dataset or re.sub(r"[^\w./-]+", "-", quality.dataset),
            dataset_name=quality.dataset,
            metric_type="panoptic_quality",
            metric_name=names[group],
            metric_value=round(100 * values[0], 2),
        )
        for group, values in quality.groups.items()
    ]


def replace_section(text: str, title: str, body: str) -> str:
    """Markdown with another text under a title of the second level; at the end if there is no such title."""
    section = f"## {title}\n\n{body}\n"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", flags=re.MULTILINE | re.DOTALL)
    found = pattern.search(text)
    if found is None:
        return f"{text.rstrip()}\n\n{section}"
    return f"{text[: found.start()]}{section}\n{text[found.end() :]}".rstrip() + "\n"


def public_name(source: str, split: str | None = None) -> str:
    """A dataset or model as strangers may read it: its name on the Hub, or of its folder without the way there."""
    name = source if hub_name(source) else Path(source).resolve().name
    return name if split is None else f"{name} {split}"


def percent(value: float) -> str:
    """A number in [0, 1] with one decimal, in percent."""
    return f"{100 * value:.1f}"


def _defaults() -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in METADATA.items()}
