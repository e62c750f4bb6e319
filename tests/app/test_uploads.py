"""Uploads are bounded before they are decoded, and only those files count that were uploaded."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from detr_panoptic.app.limits import Limits
from detr_panoptic.app.uploads import KEPT_UPLOADS, MAX_FILES, PictureError, Uploads

LIMITS = Limits(max_upload_bytes=50_000, max_pixels=10_000, concurrency=1, queue=1, max_seconds=1)


@pytest.fixture
def uploads(tmp_path) -> Uploads:
    (tmp_path / "uploads").mkdir()
    return Uploads(tmp_path / "uploads", LIMITS)


def put(uploads: Uploads, content: bytes, name: str = "picture.png", *, place: str = "0a") -> dict:
    folder = uploads.folder / place
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return {"path": str(folder / name)}


def encoded(picture: Image.Image, kind: str = "PNG", **settings) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **settings)
    return stream.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that says it is that large; it has no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_comes_upright_in_rgb(uploads, kind):
    pixels = np.zeros((31, 53, 3), np.uint8)
    pixels[:, 30:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    settings = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    content = encoded(Image.fromarray(pixels), kind, **settings)
    name, image = uploads.read({**put(uploads, content), "orig_name": "C:\\pictures\\mine.png"})
    assert name == "mine.png"
    assert image.mode == "RGB"
    values = np.asarray(image.convert("L")).astype(int)
    bright, dark = (values[35:], values[:25]) if settings else (values[:, 35:], values[:, :25])
    assert values.shape == ((53, 31) if settings else (31, 53))
    assert bright.min() > 200
    assert dark.max() < 60


@pytest.mark.filterwarnings("ignore:Image size")  # Pillow's own, about the second
@pytest.mark.parametrize(("width", "height"), [(101, 100), (10_000, 10_000), (60_000, 60_000)])
def test_too_many_pixels_are_refused_before_any_is_decoded(uploads, width, height):
    with pytest.raises(PictureError, match=r"pixels.*at most 0\.01 million"):
        uploads.read(put(uploads, bomb(width, height)))  # decoded, it would be "damaged"


def test_the_bound_itself_is_allowed(uploads):
    assert uploads.read(put(uploads, encoded(Image.new("RGB", (100, 100)))))[1].size == (100, 100)


def test_too_many_bytes_are_refused(uploads):
    with pytest.raises(PictureError, match=r"0\.1 MB.*at most 0\.05 MB"):
        uploads.read(put(uploads, encoded(Image.new("RGB", (9, 9))) + bytes(60_000)))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "no picture"),
        (b"this is a text", "no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),  # Pillow would start Ghostscript
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no picture"),
        (encoded(Image.effect_noise((99, 99), 90).convert("RGB"))[:-3000], "damaged"),
        (bomb(9, 9), "damaged"),
    ],
    ids=["empty", "text", "eps", "svg", "cut", "hollow"],
)
def test_what_is_no_picture_gets_a_sentence(uploads, content, sentence):
    with pytest.raises(PictureError, match=sentence) as caught:
        uploads.read(put(uploads, content))
    assert str(uploads.folder) not in str(caught.value)


@pytest.mark.parametrize(
    "payload", [None, 3, "x", {}, {"path": None}, {"path": 5}, {"path": "/etc/passwd"}, {"path": "\0"}]
)
def test_what_is_no_upload_gets_a_sentence(uploads, payload):
    with pytest.raises(PictureError, match="no longer here"):
        uploads.read(payload)


def test_links_and_dots_lead_nowhere(uploads, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(Image.new("RGB", (9, 9))))
    link = uploads.folder / "0a"
    link.mkdir()
    (link / "link.png").symlink_to(secret)
    assert not uploads.holds(str(link / "link.png"))
    assert not uploads.holds(f"{uploads.folder}/../secret.png")
    assert not uploads.holds(str(uploads.folder))
    assert not uploads.holds("http://127.0.0.1/picture.png")
    assert uploads.holds(put(uploads, b"x")["path"])


def test_the_oldest_files_make_room(uploads):
    for number in range(KEPT_UPLOADS + 2):
        path = put(uploads, bytes(50_000), place=f"{number:03}")["path"]
        os.utime(path, (number, number))
    uploads.tidy()
    assert sorted(path.name for path in uploads.folder.iterdir()) == [f"{n:03}" for n in range(3, KEPT_UPLOADS + 2)]
    for number in range(MAX_FILES + 5):
        path = put(uploads, b"x", place=f"{number:03}")["path"]
        os.utime(path, (1000 + number, 1000 + number))
    uploads.tidy()
    assert len(list(uploads.folder.iterdir())) == MAX_FILES - 1
    assert uploads.holds(path)


@pytest.mark.parametrize("name", ["max_upload_bytes", "max_pixels", "concurrency", "queue", "max_seconds"])
def test_limits_must_be_positive(name):
    with pytest.raises(ValueError, match=f"`{name}` must be positive, got 0"):
        Limits(**{**vars(LIMITS), name: 0})
