"""What `push` sends: a model folder that was checked, saved anew, with a card. Imports torch; `push` does it when run.

Everything is written by `save_pretrained` of what was loaded, but the card and the pictures that it shows. So there is
no list of what must not be sent: optimizer states, logs and pickles of the folder have no way into it.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..commands.frame import PROGRAM, CommandError
from ..data.contained_paths import path_inside
from ..data.hub_names import hub_name
from ..data.plain_text import one_line
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..inference.old_loading import PROCESSOR_FILE, fingerprint, load_model, load_weights, without_progress_bars
from ..model_card import MeasuredQuality, complete_card, model_card
from ..modeling_detr_panoptic import DetrPanopticForSegmentation

CARD = "README.md"
EVALUATION, EVALUATION_PICTURE = "metrics.json", "worst_and_best.png"
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
PICTURE_LINK = re.compile(r"!\[[^]]*]\(\s*([^)\s]+)[^)]*\)")
TEXT_SUFFIXES = (".json", ".md")


def write_hub_folder(
    output: Path, folder: Path, *, repository: str, evaluation: Path | None = None, license_name: str | None = None
) -> None:
    """Writes all files of a repository.

    Args:
        output: an empty folder.
        folder: of the model.
        repository: its name on the Hub, for the card.
        evaluation: output folder of `evaluate` for this model.
        license_name: identifier of the Hub; None: what the card says, or else the code's.

    Raises:
        CommandError: something is missing, disagrees with something else or is of this machine; says what to do.
    """
    model, processor = read_model(folder)
    quality = None if evaluation is None else read_evaluation(evaluation, folder)
    with without_progress_bars():
        model.save_pretrained(output)
        processor.save_pretrained(output)
    name = repository.rpartition("/")[2]
    path, pictures_of = folder / CARD, folder
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        picture = None
        if evaluation is not None and (evaluation / EVALUATION_PICTURE).is_file():
            picture, pictures_of = EVALUATION_PICTURE, evaluation
        text = str(model_card(model, name, picture=picture))
    card = complete_card(text, name=name, repository=repository, license_name=license_name, quality=quality)
    (output / CARD).write_text(str(card), encoding="utf-8")
    copy_pictures(card.text, pictures_of, output)
    check_no_private_paths(output, folder)
    with without_progress_bars():
        check_same(model, DetrPanopticForSegmentation.from_pretrained(output, dtype="auto"))


def read_model(folder: Path) -> tuple[DetrPanopticForSegmentation, DetrPanopticImageProcessor]:
    """A model as it was saved, and its image processor.

    Raises:
        CommandError: there is none, `load_weights` refuses it, or the two disagree about the labels.
    """
    if not (folder / "config.json").is_file():
        raise CommandError(f"`FOLDER` {folder} holds no config.json: no model was saved there.")
    model_type = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    if model_type != "detr_panoptic":
        raise CommandError(
            f"`FOLDER` {folder} holds a model of type {model_type!r}: `{PROGRAM} convert {folder} OUT` makes one of "
            "ours."
        )
    if not (folder / PROCESSOR_FILE).is_file():
        raise CommandError(
            f"`FOLDER` {folder} holds no {PROCESSOR_FILE}: save the model's image processor there, with "
            "`DetrPanopticImageProcessor.for_model(model.config).save_pretrained(FOLDER)` if there is none."
        )
    model = load_weights(str(folder), called=f"`FOLDER` {folder}", dtype="auto")
    processor = DetrPanopticImageProcessor.from_pretrained(folder)
    for name in ("stuff_label_ids", "category_ids"):
        ours, theirs = getattr(model.config, name), getattr(processor, name)
        if list(ours or []) != list(theirs or []):
            raise CommandError(
                f"config.json and {PROCESSOR_FILE} in {folder} disagree: `{name}` is {ours} in the first and "
                f"{theirs} in the second."
            )
    return model, processor


def read_evaluation(evaluation: Path, folder: Path) -> MeasuredQuality:
    """What `evaluate` measured.

    Raises:
        CommandError: there are no numbers, they cannot be read, or they are another model's.
    """
    path = evaluation / EVALUATION
    if not path.is_file():
        raise CommandError(f"`--evaluation {evaluation}` holds no {EVALUATION}: name the output folder of `evaluate`.")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        settings = metrics["settings"]
        model, dtype = settings["model"], settings["dtype"].removeprefix("torch.")
        quality = _measured_quality(metrics)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CommandError(f"{path} is not what `evaluate` writes, or only a part of it.") from error
    if fingerprint(*load_model(str(folder), torch.device("cpu"), dtype=dtype)) != model:
        raise CommandError(
            f"`--evaluation {evaluation}` measured another model than the one in {folder}: measure this one, with "
            f"`{PROGRAM} evaluate --model {folder}`."
        )
    return quality


def _measured_quality(metrics: dict[str, Any]) -> MeasuredQuality:
    dataset, skipped = metrics["dataset"], len(metrics["skipped"])
    return MeasuredQuality(
        dataset=dataset,
        hub_dataset=hub_name(dataset.split(" ")[0]),
        how=f"{metrics['images']} images, threshold {metrics['settings']['threshold']}"
        + (f", {skipped} that could not be read left out" if skipped else ""),
        groups={
            name: (row["pq"], row["sq"], row["rq"]) for name, row in metrics["panoptic_quality"].items() if row["n"]
        },
        classes={row["name"]: row["pq"] for row in metrics["per_class"] if row["tp"] + row["fp"] + row["fn"]},
    )


def copy_pictures(text: str, folder: Path, output: Path) -> None:
    """Copies the pictures that a card shows.

    Raises:
        CommandError: one is not there, is no picture, or lies outside the folder.
    """
    for link in PICTURE_LINK.findall(text):
        if "://" in link:
            continue
        try:
            path = path_inside(folder, link, CARD)
        except ValueError as error:
            raise CommandError(f"The card shows {link}, which lies outside {folder}.") from error
        if path.suffix.lower() not in PICTURE_SUFFIXES or not path.is_file():
            raise CommandError(f"The card shows {link}, which is no picture in {folder}.")
        (output / link).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, output / link)


def check_no_private_paths(output: Path, folder: Path) -> None:
    """Refuses text that names folders of this machine.

    Raises:
        CommandError: names the file and the line.
    """
    near = (Path.home(), Path.cwd(), folder.resolve().parent)
    places = {str(place) for place in near if place != Path(place.anchor)}
    for path in sorted(output.iterdir()):
        if path.suffix not in TEXT_SUFFIXES:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if found := next((place for place in places if place in line), None):
                raise CommandError(f"{path.name}, line {number}, names a folder of this machine: {found}. Change it.")


def check_same(model: DetrPanopticForSegmentation, again: DetrPanopticForSegmentation) -> None:
    """Refuses to send what does not come back as the same bits.

    Raises:
        CommandError: a weight differs.
    """
    theirs = again.state_dict()
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, theirs[name]):
            raise CommandError(f"{name} is not the same after saving and loading: nothing was sent.")


def describe_files(folder: Path) -> str:
    """A line for each file with its size, and the whole."""
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files_of(folder)}
    lines = [one_line(f"{size / 1e6:10.3f} MB  {name}") for name, size in sizes.items()]
    return "\n".join((*lines, f"{sum(sizes.values()) / 1e6:10.3f} MB  in {len(sizes)} files"))


def left_out(folder: Path, output: Path) -> list[str]:
    """What lies in the model's folder and is not sent."""
    sent = {path.relative_to(output).parts[0] for path in files_of(output)}
    others = (path for path in sorted(folder.iterdir()) if path.name not in sent and not path.name.startswith("."))
    return [path.name + ("/" if path.is_dir() else "") for path in others]


def files_of(folder: Path) -> list[Path]:
    """All files, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
