"""Pictures that strangers upload: how much of them is kept, and how they are read."""

import os
import shutil
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ..image_reading import FORMATS, plain_picture
from .limits import Limits

MAX_FILES = 256
KEPT_UPLOADS = 16  # the folder holds as many bytes as so many of the largest uploads
MAX_NAME = 80  # letters of a file's name that are shown


class PictureError(ValueError):
    """A picture that is not segmented; its text is the sentence to show."""


class Uploads:
    """The folder of uploaded files, in which each has a folder of its own.

    Args:
        folder: that exists, and that nothing else uses.
        limits: of the server.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        """Keep both."""
        self.folder = folder.resolve()
        self.limits = limits

    def holds(self, path: object) -> bool:
        """Whether that is the path of a file in the folder, links followed."""
        if not isinstance(path, str) or "\0" in path:
            return False
        file = Path(os.path.realpath(path))
        return file.is_relative_to(self.folder) and file.is_file()

    def tidy(self) -> None:
        """Remove the oldest files until there is room for another one."""
        most = (KEPT_UPLOADS - 1) * self.limits.max_upload_bytes
        files = [(path.stat(), path) for path in self.folder.glob("*/*") if path.is_file()]
        files.sort(key=lambda entry: -entry[0].st_mtime)  # the newest first
        total = 0
        for number, (status, path) in enumerate(files):
            total += status.st_size
            if number >= MAX_FILES - 1 or total > most:
                shutil.rmtree(path.parent, ignore_errors=True)

    def read(self, payload: Any) -> tuple[str, Image.Image]:
        """The name and the pixels of an upload.

        Args:
            payload: what the page's picture field sends: `path` of the file and, perhaps, its `orig_name`.

        Returns:
            The name, and the picture upright, RGB, 8 bits.

        Raises:
            PictureError: it is too large, or no picture.
        """
        path = payload.get("path") if isinstance(payload, dict) else None
        if not self.holds(path):
            raise PictureError("The picture is no longer here. Please choose it again.")
        file = Path(str(path))
        size = file.stat().st_size
        if size > self.limits.max_upload_bytes:
            raise PictureError(
                f"The file has {size / 1e6:.1f} MB; this page takes at most {self.limits.max_upload_bytes / 1e6:g} MB."
            )
        name = str(payload.get("orig_name") or file.name)
        return Path(name.replace("\\", "/")).name[:MAX_NAME], self._decode(file)

    def _decode(self, file: Path) -> Image.Image:
        """The picture of a file; its size is known before any pixel is decoded."""
        try:
            with Image.open(file, formats=FORMATS) as picture:
                self._check_size(picture.size)
                return plain_picture(picture)
        except PictureError:
            raise
        except UnidentifiedImageError as error:
            raise PictureError(f"This file is no picture that can be read here ({', '.join(FORMATS)}).") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise PictureError(f"The picture has too many pixels; {self._allowed()}.") from error
        except Exception as error:
            # Broken files raise anything from SyntaxError to struct.error.
            raise PictureError("This picture is damaged: it cannot be read to its end.") from error

    def _check_size(self, size: tuple[int, int]) -> None:
        width, height = size
        if width * height > self.limits.max_pixels:
            raise PictureError(
                f"The picture has {width} by {height} pixels, {width * height / 1e6:.1f} million; {self._allowed()}."
            )

    def _allowed(self) -> str:
        return f"this page takes at most {self.limits.max_pixels / 1e6:g} million"
