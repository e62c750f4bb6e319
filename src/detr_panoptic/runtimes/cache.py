"""The graphs of models in the user's cache, each found by the model's weights."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock

if TYPE_CHECKING:
    from ..modeling_detr_panoptic import DetrPanopticForSegmentation

VERSION = "1"  # of the graphs; counts up when they change
PARTIAL = ".partial_"  # how folders begin that are being written
KEPT = 4  # models in the cache; a ResNet-50 takes about 0.35 GB for each precision


def cache_home() -> Path:
    """Returns the folder for all models, inside Hugging Face's cache of assets (`HF_ASSETS_CACHE`)."""
    return Path(constants.HF_ASSETS_CACHE) / "detr_panoptic" / "graphs"


def hash_of(model: DetrPanopticForSegmentation, *others: str) -> str:
    """Returns a hash of the weights of a model, with their names and shapes, and of other texts."""
    digest = hashlib.blake2b(repr(others).encode(), digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def key_of(model: DetrPanopticForSegmentation) -> str:
    """Returns what changes whenever the graphs of a model would."""
    config = {name: value for name, value in model.config.to_dict().items() if not name.startswith("_")}
    return hash_of(model, VERSION, torch.__version__, json.dumps(config, sort_keys=True, default=str))


def prepared_key(model: DetrPanopticForSegmentation) -> str | None:
    """Returns the key of a model whose graphs the cache has, or None."""
    if not cache_home().is_dir():
        return None
    key = key_of(model)
    return key if (cache_home() / key).is_dir() else None


@contextmanager
def prepared(key: str, write: Callable[[Path], Any]) -> Iterator[Path]:
    """Yields the folder of a key, filled by `write` if it is new. One process or thread at a time holds it.

    The `KEPT` folders that were used last stay, and others are removed.
    """
    home = cache_home()
    home.mkdir(parents=True, exist_ok=True)
    folder = home / key
    with WeakFileLock(home / f"{key}.lock"):
        if not folder.is_dir():
            with TemporaryDirectory(prefix=PARTIAL, dir=home, ignore_cleanup_errors=True) as partial:
                filled = Path(partial) / key
                filled.mkdir()
                write(filled)
                filled.rename(folder)
        os.utime(folder)
        yield folder
    _remove_unused(home)


def _remove_unused(home: Path) -> None:
    """Removes all but the newest folders that are complete; one that another process reads stays open for it."""
    found = []
    for path in home.iterdir():
        with suppress(FileNotFoundError):  # another process has removed it
            if path.is_dir() and not path.name.startswith(PARTIAL):
                found.append((path.stat().st_mtime, path))
    for _, path in sorted(found, reverse=True)[KEPT:]:
        shutil.rmtree(path, ignore_errors=True)  # its lock file stays: another process may hold it
