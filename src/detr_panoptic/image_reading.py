"""Reads images of every kind as (3, H, W) tensors: modes, bit depths, channel orders and rotation tags."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import reduce
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from transformers.image_utils import ChannelDimension, load_image

MAX_UINT16, MAX_UINT8 = 65535, 255
# Pillow recognizes a file by its content, not its name, in fifty formats; for PostScript it runs Ghostscript.
FORMATS = ["AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"]


def read_picture(source: str | os.PathLike[str], *, timeout: float | None = None) -> Image.Image:
    """Opens a path as it is stored, whatever its mode; a URL (waiting `timeout` seconds) or base64 string as RGB.

    ValueError names one that is unreadable, larger than twice `PIL.Image.MAX_IMAGE_PIXELS`, or a file of no `FORMATS`.
    """
    try:
        if isinstance(source, str) and not os.path.exists(source):  # noqa: PTH110  of a long base64 string, no error
            return load_image(source, timeout=timeout)
        with Image.open(source, formats=FORMATS) as picture:
            picture.load()
            return picture
    except Exception as error:
        # Broken files raise anything from SyntaxError to struct.error, and few of these name the file.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"Cannot read the image {str(source)[:200]!r}: {reason}") from error


def picture_to_tensor(picture: Image.Image) -> Tensor:
    """Converts a picture of any mode to (3, H, W) uint8, rotated as its EXIF tag says."""
    picture.load()  # a broken file raises here, not where errors are ignored
    with suppress(Exception):  # damaged tags raise anything from SyntaxError to struct.error
        if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else it would be copied
            picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        # PIL's own conversion clips 16 bits at 255, which gives a white image; as "I" it opens several 16-bit formats.
        values = torch.from_numpy(np.asarray(picture).astype(np.int64))
        return _sixteen_to_eight_bits(values).expand(3, -1, -1)
    if picture.mode == "F":
        return _floats_to_eight_bits(torch.from_numpy(np.array(picture))).expand(3, -1, -1)
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # else PIL warns
    return torch.from_numpy(np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))).permute(2, 0, 1)


def _sixteen_to_eight_bits(values: Tensor) -> Tensor:
    """Scales integers from 0 to 65535 to the nearest uint8."""
    return ((values.clamp(0, MAX_UINT16) * MAX_UINT8 + MAX_UINT16 // 2) // MAX_UINT16).to(torch.uint8)


def _floats_to_eight_bits(values: Tensor) -> Tensor:
    """Scales floats from 0 to 1, or from 0 to 255, to the nearest uint8; raises ValueError for others."""
    low, high = values.min().item(), values.max().item()
    if not (low >= 0 and high <= MAX_UINT8):  # not so for NaN either
        raise ValueError(f"A picture of floats must have values from 0 to 1 or to 255, got {low:g} to {high:g}.")
    return (values * (MAX_UINT8 if high <= 1 else 1)).round().to(torch.uint8)


def image_to_tensor(image: Any, input_data_format: str | ChannelDimension | None = None) -> Tensor:
    """Converts a picture of any mode, an array or a tensor to (3, H, W), uint8 or the given floats.

    Args:
        image: a picture, or (H, W), (C, H, W) or (H, W, C), C 1, 3 or 4. uint16 is scaled to 8 bits, booleans are
            black and white, a fourth channel (alpha) is dropped.
        input_data_format: "channels_first" or "channels_last"; None infers it, last for arrays where both fit.
    """
    if isinstance(image, Image.Image):
        return picture_to_tensor(image)
    if not isinstance(image, (np.ndarray, Tensor)):
        raise ValueError(f"`images` must be pictures, paths, URLs, arrays or tensors, got {type(image).__name__}.")
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
        raise ValueError(f"`images` must be (H, W), or have 1, 3 or 4 channels first or last, got the shape {shape}.")
    return (pixels[:3] if pixels.dtype == torch.uint8 else _eight_bits(pixels[:3])).expand(3, -1, -1)


def _eight_bits(pixels: Tensor) -> Tensor:
    """Converts integers to uint8, and floats to float32."""
    if pixels.is_floating_point():
        if not pixels.isfinite().all():
            raise ValueError("`images` of floats must have finite values, got NaN or infinite ones.")
        return pixels.float()
    if pixels.dtype == torch.uint16:
        return _sixteen_to_eight_bits(pixels.long())
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * MAX_UINT8
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > MAX_UINT8:
        raise ValueError(f"An image of {pixels.dtype} must have values from 0 to {MAX_UINT8}, got {low} to {high}.")
    return pixels.to(torch.uint8)


def each_image(images: Any) -> Iterator[Any]:
    """Yields the single images of lists and of batches (B, C, H, W)."""
    if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) > 3:
        for image in images:
            yield from each_image(image)
    else:
        yield images


def stack_padded(tensors: Sequence[Tensor], size: tuple[int, int] | None = None, dtype: Any = None) -> Tensor:
    """Stacks (..., h, w) tensors at the upper left of zeros (B, ..., H, W), of `size` or as large as the largest."""
    canvas = size or (max(t.shape[-2] for t in tensors), max(t.shape[-1] for t in tensors))
    dtype = dtype or reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    stacked = tensors[0].new_empty((len(tensors), *tensors[0].shape[:-2], *canvas), dtype=dtype)
    for place, tensor in zip(stacked, tensors, strict=True):
        height, width = tensor.shape[-2:]
        place[..., :height, :width] = tensor
        place[..., height:, :], place[..., :height, width:] = 0, 0  # no zeros below the image: memory is slow
    return stacked
