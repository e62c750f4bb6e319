"""What a long run has done, one line per image, so that an interrupted run goes on where it was.

Each process appends to a file of its own; a line is there or not, whatever moment the process is killed at. Files that
belong to an image are written before its line, and whole (`written_whole`). Images are numbers from 0; a journal of a
million takes a few bytes of memory for each.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..data.files import written_whole

SETTINGS = "settings.json"


class Journal:
    """Entries of images; use it as a context while writing.

    Args:
        folder: where the files lie; made by `open`. All processes of a run see the same one.
        settings: what the results depend on, as JSON has it: a run with others is refused.
        length: number of images.
        process: of this process, from 0.

    Raises:
        ValueError: the folder has a journal of other settings; names the first that differs.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, length: int, process: int = 0) -> None:
        """Read what is there."""
        self.folder = folder
        self.settings = json.loads(json.dumps(settings))
        self.length = length
        self.process = process
        self._stream: Any = None
        self._check_settings()
        self.reload()

    def reload(self) -> None:
        """Read again what all processes have written."""
        self._files = sorted(self.folder.glob("*.jsonl"))
        self._file_of = np.full(self.length, -1, dtype=np.int16)
        self._offset_of = np.zeros(self.length, dtype=np.int64)
        self.failures: dict[int, str] = {}
        for number, path in enumerate(self._files):
            for offset, entry in _entries(path):
                index = entry["index"]
                if "error" in entry:
                    self.failures[index] = entry["error"]
                elif self._file_of[index] < 0:
                    self._file_of[index], self._offset_of[index] = number, offset
        self.failures = {index: self.failures[index] for index in sorted(self.failures) if not self.is_done(index)}

    def is_done(self, index: int) -> bool:
        """Whether the image has an entry; one that failed has none, and is tried again."""
        return bool(self._file_of[index] >= 0)

    def __len__(self) -> int:
        """Number of images with an entry."""
        return int((self._file_of >= 0).sum())

    def __enter__(self) -> "Journal":
        """Start writing. The main process leaves the settings to later runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.process == 0:
            shutil.rmtree(self._removed, ignore_errors=True)  # of a run that was killed while it removed its own
            with written_whole(self.folder / SETTINGS) as part:
                part.write_text(json.dumps(self.settings, indent=1) + "\n", encoding="utf-8")
        path = self.folder / f"{self.process:05d}.jsonl"
        _cut_torn_line(path)
        self._stream = path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop writing."""
        self._stream.close()

    def remove(self) -> None:
        """Takes the journal away: whenever the process is killed, the next run finds all of it or nothing."""
        removed = self._removed
        self.folder.rename(removed)
        shutil.rmtree(removed)

    @property
    def _removed(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.removed")

    def write(self, index: int, entry: Mapping[str, Any]) -> None:
        """Say that an image is done, and what came of it (JSON)."""
        self._append({"index": index, **entry})

    def write_failure(self, index: int, message: str) -> None:
        """Say that an image could not be done, and why."""
        self._append({"index": index, "error": message})

    def entries(self) -> Iterator[dict[str, Any]]:
        """What was written of each image that is done, in the order of the images."""
        streams = [path.open("rb") for path in self._files]
        try:
            for index in np.flatnonzero(self._file_of >= 0):
                stream = streams[self._file_of[index]]
                stream.seek(self._offset_of[index])
                yield json.loads(stream.readline())
        finally:
            for stream in streams:
                stream.close()

    def _append(self, entry: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(entry) + "\n")
        self._stream.flush()  # to the system: a killed process loses nothing

    def _check_settings(self) -> None:
        path = self.folder / SETTINGS
        if not path.is_file():
            return
        earlier = json.loads(path.read_text(encoding="utf-8"))
        for name in sorted(earlier.keys() | self.settings.keys()):
            before, now = earlier.get(name), self.settings.get(name)
            if before != now:
                raise ValueError(
                    f"{self.folder.parent} holds results with `{name}` {before!r}, expected {now!r}: name another "
                    f"folder, or delete that one."
                )


def _entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Offset and content of each whole line."""
    offset = 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                return  # the process was killed in the middle of it
            yield offset, json.loads(line)
            offset += len(line)


def _cut_torn_line(path: Path) -> None:
    """Take the end off a file that a killed process left without a line break."""
    if path.exists():
        with path.open("r+b") as stream:
            whole = sum(len(line) for line in stream if line.endswith(b"\n"))
            stream.truncate(whole)
