"""Images of every kind as (3, H, W) tensors: what to do with modes, bit depths, channel orders and rotation tags."""

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from transformers.image_utils import ChannelDimension, load_image

MAX_UINT16, MAX_UINT8 = 65535, 255
# Pillow goes by the content of a file, not by its name, and knows fifty formats; for PostScript it runs Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
URLS = ("http://", "https://")
MAX_PATH = 4096  # characters; what is longer is no path but base64
MIN_PICTURE = 20  # bytes; no format has a smaller file


def read_picture(source: str | os.PathLike[str], *, timeout: float | None = None) -> Image.Image:
    """Opens a path or base64 string as it is stored, whatever its mode, or a URL as RGB.

    Nothing is decoded that has more than twice `PIL.Image.MAX_IMAGE_PIXELS`, or another format than `FORMATS`.

    Args:
        source: the path, URL or string.
        timeout: seconds to wait for a URL; None waits on.

    Raises:
        ValueError: if it cannot be read; names it.
    """
    try:
        if isinstance(source, str) and source.startswith(URLS):
            return load_image(source, timeout=timeout)
        with Image.open(_file_of(source), formats=FORMATS) as picture:
            picture.load()
            return picture
    except Exception as error:
        # Broken files raise anything from SyntaxError to struct.error, and few of these name the file.
        raise ValueError(f"Cannot read the image {str(source)[:200]!r}: {_reason(error)}") from error


def _file_of(source: str | os.PathLike[str]) -> Path | io.BytesIO:
    """The file that is meant, or the contents that a base64 string has.

    Raises:
        ValueError: it is neither.
    """
    is_short = len(os.fspath(source)) <= MAX_PATH
    if is_short and Path(source).is_file():
        return Path(source)
    if is_short and Path(source).is_dir():
        raise ValueError("it is a folder.")
    try:
        text = str(source).partition(",")[2] or str(source)  # data:image/png;base64,…
        contents = base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        contents = b""
    if len(contents) < MIN_PICTURE:  # short names of files are base64, too
        raise ValueError("there is no such file.")
    return io.BytesIO(contents)


def _reason(error: Exception) -> str:
    """Why a picture cannot be read, as one line."""
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels, the most that are decoded."
    if isinstance(error, UnidentifiedImageError):
        return f"it is empty, damaged, or none of {', '.join(FORMATS)}."
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().partition("\n")[0] or type(error).__name__


def refuse_other_formats() -> None:
    """Let this whole process open nothing but `FORMATS`: for programs, whose pictures are opened by libraries too."""
    Image.init()
    Image.ID[:] = [name for name in Image.ID if name in FORMATS]


def picture_to_tensor(picture: Image.Image) -> Tensor:
    """A picture of any mode, turned as its EXIF tag says, to (3, H, W) uint8."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        # PIL's own conversion clips 16 bits at 255, which leaves a white image. "I" has 32 bits, and is how PIL opens
        # 16-bit files of several formats.
        values = torch.from_numpy(np.asarray(picture).astype(np.int64))
        return _sixteen_to_eight_bits(values).expand(3, -1, -1).contiguous()
    if picture.mode == "F":
        return _floats_to_eight_bits(torch.from_numpy(np.array(picture))).expand(3, -1, -1).contiguous()
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # else PIL warns
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()


def plain_picture(picture: Image.Image) -> Image.Image:
    """The picture as the model sees it: upright, RGB, 8 bits.

    Raises:
        ValueError: as `picture_to_tensor`.
    """
    return Image.fromarray(picture_to_tensor(picture).permute(1, 2, 0).contiguous().numpy())


def _sixteen_to_eight_bits(values: Tensor) -> Tensor:
    """Integers from 0 to 65535 to the nearest uint8, so that the ends meet."""
    return ((values.clamp(0, MAX_UINT16) * MAX_UINT8 + MAX_UINT16 // 2) // MAX_UINT16).to(torch.uint8)


def _floats_to_eight_bits(values: Tensor) -> Tensor:
    """Floats from 0 to 1, or from 0 to 255, to the nearest uint8.

    Raises:
        ValueError: they are neither; what would be white and black is not known then.
    """
    low, high = values.min().item(), values.max().item()
    if not (low >= 0 and high <= MAX_UINT8):  # not so for NaN either
        raise ValueError(
            f"A picture of floats must have values from 0 to 1 or to {MAX_UINT8}, got {low:g} to {high:g}."
        )
    return (values * (MAX_UINT8 if high <= 1 else 1)).round().to(torch.uint8)


def array_to_tensor(image: np.ndarray | Tensor, input_data_format: str | ChannelDimension | None) -> Tensor:
    """An array or tensor (H, W), (C, H, W) or (H, W, C) with C 1, 3 or 4 to (3, H, W), uint8 or the floats that came.

    Args:
        image: uint16 is scaled to 8 bits, booleans are black and white, a fourth channel (alpha) is dropped.
        input_data_format: where the channels are. None finds out; where both are possible, an array has them last
            and a tensor first.

    Raises:
        ValueError: if the shape or the values are no image's.
    """
    if not isinstance(image, (np.ndarray, Tensor)):
        raise ValueError(
            f"Each of `images` must be a picture, path, URL, array or tensor, got {type(image).__name__}."
        )
    shape = tuple(image.shape)
    pixels = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    if pixels.ndim == 2:
        pixels, input_data_format = pixels[None], ChannelDimension.FIRST
    if input_data_format is None and pixels.ndim == 3:
        axes = [axis for axis in (0, 2) if shape[axis] in (1, 3, 4)]
        ambiguous_axis = 0 if isinstance(image, Tensor) else 2
        last = (axes[0] if len(axes) == 1 else ambiguous_axis) == 2
        input_data_format = ChannelDimension.LAST if last else ChannelDimension.FIRST
    if input_data_format == ChannelDimension.LAST:
        pixels = pixels.movedim(-1, 0)
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3, 4) or 0 in shape:
        raise ValueError(
            f"Each of `images` must be (H, W), or have 1, 3 or 4 channels first or last, got the shape {shape}."
        )
    return _eight_bits(pixels[:3]).expand(3, -1, -1).contiguous()


def _eight_bits(pixels: Tensor) -> Tensor:
    """Integers to uint8; floats stay, in float32."""
    if pixels.is_floating_point():
        return pixels.float()
    if pixels.dtype == torch.uint16:
        return _sixteen_to_eight_bits(pixels.long())
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * MAX_UINT8
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > MAX_UINT8:
        raise ValueError(f"An image of {pixels.dtype} must have values from 0 to {MAX_UINT8}, got {low} to {high}.")
    return pixels.to(torch.uint8)


def channels_last(pixels: Tensor) -> Tensor:
    """The same (3, H, W) values, in memory pixel by pixel: what is resized to a width of 1 has to come so.

    PyTorch 2.14 otherwise takes a result of bytes that is one pixel wide for the other layout: it mixes rows and
    channels, or stops with an internal error.
    """
    return pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def flatten_images(images: Any) -> Iterator[Any]:
    """Single images out of lists and out of batches (B, C, H, W)."""
    if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) > 3:
        for image in images:
            yield from flatten_images(image)
    else:
        yield images
