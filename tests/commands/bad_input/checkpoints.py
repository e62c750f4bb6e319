"""Folders of models that are damaged, incomplete, of another kind, or hostile."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.commands.bad_input.place import Case, Place

WEIGHTS, CONFIG, PROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"


class Hostile:
    """Unpickling it makes a file, `touched`, in the current folder."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (Path("touched"),)


def spoiled(spoil: Callable[[Path], object]) -> Case:
    """`predict` with a model whose folder was changed; nothing in it may have run."""

    def case(place: Place) -> str:
        spoil(place.model())
        line = place.predict()
        assert not (place.folder / "touched").exists()
        assert not (place.folder / "out").exists()
        return line

    return case


def setting(file: str, **changes: Any) -> Case:
    def spoil(folder: Path) -> None:
        contents = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(contents | changes))

    return spoiled(spoil)


def text(file: str, contents: str) -> Case:
    return spoiled(lambda folder: (folder / file).write_text(contents))


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Case:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return spoiled(spoil)


def truncated(folder: Path) -> None:
    contents = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(contents[: len(contents) // 2])


def pickled(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        torch.save({"class_head.weight": Hostile()}, folder / name)

    return spoil


def plain_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"class_head.weight": Hostile()}))


def shard_missing(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = {name: f"model-{1 + (index > 9)}.safetensors" for index, name in enumerate(tensors)}
    first = {name: tensor for name, tensor in tensors.items() if names[name] == "model-1.safetensors"}
    save_file(first, folder / "model-1.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": names}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def without_mask_head(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("mask_head.")]:
        del tensors[name]


def labels(count: int) -> dict[str, Any]:
    names = [f"class {label}" for label in range(count)]
    return {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}


def another_model(folder: Path) -> None:
    from transformers import ViTConfig

    (folder / CONFIG).unlink()
    ViTConfig().save_pretrained(folder)


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def convert_file(name: str, contents: Any) -> Case:
    """`convert` of a file."""

    def case(place: Place) -> str:
        if isinstance(contents, bytes):
            (place.folder / name).write_bytes(contents)
        else:
            torch.save(contents, place.folder / name)
        line = place.program("convert", name, "ours")
        assert not (place.folder / "touched").exists()
        assert not (place.folder / "ours").exists()
        return line

    return case


def compressed_file(place: Place) -> str:
    """A zip bomb in the format of torch: a kilobyte that unpacks to a thousand."""
    import zipfile

    torch.save({"model": {"a": torch.zeros(250_000)}}, place.folder / "plain.pth")
    with zipfile.ZipFile("plain.pth") as plain, zipfile.ZipFile("detr.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in plain.namelist():
            packed.writestr(entry, plain.read(entry))
    return place.program("convert", "detr.pth", "ours")


def shard_outside(place: Place) -> str:
    folder = place.folder / "detr"
    folder.mkdir()
    (folder / CONFIG).write_text('{"model_type": "detr"}')
    index = {"weight_map": {"a": "../../elsewhere.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    return place.program("convert", "detr", "ours")


def file_for_model(place: Place) -> str:
    (place.folder / "detr.pth").write_bytes(b"")
    return place.predict(model="detr.pth")


CASES: dict[str, Case] = {
    "a safetensors file that ends in the middle": spoiled(truncated),
    "a safetensors file of zero bytes": spoiled(lambda folder: (folder / WEIGHTS).write_bytes(b"")),
    "a pickle named model.safetensors": spoiled(pickled(WEIGHTS)),
    "a hostile pickle as pytorch_model.bin": spoiled(pickled("pytorch_model.bin")),
    "a hostile pickle without torch's archive": spoiled(plain_pickle),
    "no weights": spoiled(lambda folder: (folder / WEIGHTS).unlink()),
    "a shard that is missing": spoiled(shard_missing),
    "weights without the mask head": weights(without_mask_head),
    "weights with a tensor too many": weights(lambda t: t.update(extra=torch.zeros(2))),
    "a class head of another shape": weights(lambda t: t.update({"class_head.bias": torch.zeros(9)})),
    "weights that are NaN": weights(lambda t: t.update({"class_head.bias": torch.full((4,), float("nan"))})),
    "`id2label` that disagrees with the weights": setting(CONFIG, **labels(5), category_ids=None),
    "`num_labels` that disagrees with `id2label`": setting(CONFIG, num_labels=7),
    "fewer decoder layers than the weights have": setting(CONFIG, decoder_layers=1),
    "a hidden size of 2⁴⁰": setting(CONFIG, hidden_size=2**40),
    "a hidden size that is a text": setting(CONFIG, hidden_size="large"),
    "no layer at all": setting(CONFIG, encoder_layers=0),
    "`id2label` that is a list": setting(CONFIG, id2label=["a", "b"]),
    "`id2label` whose keys are names": setting(CONFIG, id2label={"a": "b"}),
    "stuff that is no label": setting(CONFIG, stuff_label_ids=[9]),
    "a type of numbers that torch does not have": setting(CONFIG, dtype="float7"),
    "a misspelled field": setting(CONFIG, num_querys=3),
    "a backbone to be fetched from a repository": setting(CONFIG, backbone="hf-hub:someone/something"),
    "config.json that breaks off": text(CONFIG, "{"),
    "config.json that is a list": text(CONFIG, "[]"),
    "another architecture": spoiled(another_model),
    "an empty folder": spoiled(empty),
    "a file instead of a folder": file_for_model,
    "no image processor": spoiled(lambda folder: (folder / PROCESSOR).unlink()),
    "an image processor that breaks off": text(PROCESSOR, "{"),
    "an image processor of another model": setting(PROCESSOR, image_processor_type="ViTImageProcessor"),
    "an image processor with a threshold of 7": setting(PROCESSOR, threshold=7),
    "a model that is neither here nor on the Hub": lambda place: place.predict(model="no_model"),
    "`convert`: a hostile pickle": convert_file("detr.pth", {"model": {}, "optimizer": Hostile()}),
    "`convert`: a file that is no checkpoint": convert_file("detr.pth", b"<html>404</html>"),
    "`convert`: tensors of another model": convert_file("detr.pth", {"model": {"conv1.weight": torch.zeros(1)}}),
    "`convert`: numbers instead of tensors": convert_file("detr.pth", {"model": {"epoch": 3}}),
    "`convert`: a zip bomb": compressed_file,
    "`convert`: a shard outside of the folder": shard_outside,
}
