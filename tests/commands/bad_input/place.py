"""Where a case of bad input happens: a folder to be in, a model, and how its one line of error is caught."""

import contextlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from PIL import Image

from detr_panoptic.commands import main
from tests.conftest import photo

Case = Callable[["Place"], str]


class Place:
    """A working folder.

    Args:
        folder: the current one, empty.
        model: a saved model, not to be written to.
    """

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self._model = model

    def program(self, *words: object, code: int = 2) -> str:
        """What `detr-panoptic` says when it fails: one line on stderr, without the beginning that all have."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            assert main([str(word) for word in words]) == code, (out.getvalue(), err.getvalue())
        AcceleratorState._reset_state()
        PartialState._reset_state()
        lines = re.findall(r"^(?:detr-panoptic[^:]*: error|skipped): (.*)$", err.getvalue(), flags=re.MULTILINE)
        assert len(lines) == 1, err.getvalue()
        assert "Traceback" not in out.getvalue() + err.getvalue()
        return self._anywhere(lines[0])

    def refused(self, call: Callable[[], Any]) -> str:
        """What Python says when a call is refused: the type and its text."""
        try:
            result = call()
        except (ValueError, TypeError) as error:
            return self._anywhere(f"{type(error).__name__}: {error}")
        raise AssertionError(f"nothing was refused, got {result}")

    def predict(self, image: object = "photo.png", *options: object, model: object = "my_model") -> str:
        """`detr-panoptic predict` on an image."""
        self.model()
        return self.program("predict", image, "--model", model, "--output", "out", *options)

    def convert(self, *options: object) -> str:
        """`detr-panoptic data convert` of `my_data`, which reads everything in it."""
        line = self.program("data", "convert", "my_data", "out", *options)
        assert not (self.folder / "out").exists()
        return line

    def model(self) -> Path:
        """`my_model`, a copy to spoil, and `photo.png`."""
        copy = self.folder / "my_model"
        if not copy.exists():
            shutil.copytree(self._model, copy)
        if not (self.folder / "photo.png").exists():
            self.picture().save(self.folder / "photo.png")
        return copy

    def picture(self) -> Image.Image:
        """A small photograph."""
        return photo((31, 23), seed=0)

    def write_json(self, name: str, contents: Any) -> None:
        """A file with JSON, or with the text that is given."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(contents if isinstance(contents, str) else json.dumps(contents))

    def _anywhere(self, text: str) -> str:
        """The text as it would be in any folder."""
        return text.replace(f"{self.folder}/", "").replace(str(self.folder), ".")
