"""Records as the contents of files; a file is copied byte by byte, since encoding a JPEG again would change it."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from .lazy_records import check_size, open_stored, row_error
from .records import Record, ids_to_rgb, segmentation_ids


def stored_record(record: Record) -> Record:
    """Returns a record whose images are the contents of files; raises ValueError for a broken or unfitting map."""
    name, contents = picture_file(record)
    return {
        "image": {"bytes": contents, "path": PurePosixPath(name).name},
        "image_id": record["image_id"],
        "file_name": name,
        "segmentation": {"bytes": map_file(record), "path": PurePosixPath(name).with_suffix(".png").name},
        "segments_info": record["segments_info"],
    }


def picture_file(record: Record) -> tuple[str, bytes]:
    """Returns the name and contents of a record's image file; an image in memory becomes a PNG file."""
    image, name, number = record["image"], record.get("file_name"), f"{record['image_id']:012d}"
    if isinstance(image, PILImage.Image):
        return str(PurePosixPath(name or number).with_suffix(".png")), _png(image)
    contents = _contents(image)
    if not name and image.get("path"):
        name = PureWindowsPath(image["path"]).name  # either kind of slash
    if not name:
        with open_stored(image) as picture:
            name = f"{number}.{str(picture.format).lower()}"
    return name, contents


def map_file(record: Record) -> bytes:
    """Returns a record's id map as an RGB PNG file (copied if it is one); raises ValueError as `stored_record`."""
    segmentation = record["segmentation"]
    if isinstance(segmentation, Mapping):
        contents = _contents(segmentation)
        try:
            with open_stored({"bytes": contents}) as picture:
                picture.load()
        except Exception as error:  # broken files raise anything from SyntaxError to struct.error
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
            message = f"the map {segmentation.get('path') or ''} is broken: {reason}"
            raise row_error(record, message, kind="unreadable-map") from error
        check_size(record, picture.size)
        return contents if (picture.format, picture.mode) == ("PNG", "RGB") else _png(picture.convert("RGB"))
    ids = segmentation_ids(segmentation)
    check_size(record, ids.shape[::-1])
    return _png(PILImage.fromarray(ids_to_rgb(ids)))


def _contents(picture: Mapping[str, Any]) -> bytes:
    contents = picture.get("bytes")
    return Path(picture["path"]).read_bytes() if contents is None else contents


def _png(picture: PILImage.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
