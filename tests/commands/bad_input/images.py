"""Images that are none, and images that look odd and are good."""

import base64
import socket
import struct
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

from detr_panoptic.image_reading import picture_to_tensor, read_picture
from tests.commands.bad_input.place import Case, Place

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run\n%%EOF\n"


def contents(place: Place, image_format: str, **options) -> bytes:
    stream = BytesIO()
    place.picture().save(stream, image_format, **options)
    return stream.getvalue()


def bad_file(name: str, make: Callable[[Place], bytes]) -> Case:
    """`predict` of a file with such contents."""

    def case(place: Place) -> str:
        (place.folder / name).write_bytes(make(place))
        return place.predict(name)

    return case


def half(image_format: str) -> Callable[[Place], bytes]:
    return lambda place: (whole := contents(place, image_format))[: len(whole) // 2]


def png_of_size(width: int, height: int) -> bytes:
    """A PNG file whose head says so, with next to nothing in it."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"0"))]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*chunks, (b"IEND", b"")]
    )
    return b"\x89PNG\r\n\x1a\n" + body


def floats(values: list[float]) -> Callable[[Place], bytes]:
    def make(_: Place) -> bytes:
        stream = BytesIO()
        Image.fromarray(np.array([values], np.float32)).save(stream, "TIFF")
        return stream.getvalue()

    return make


def folder_named_as_image(place: Place) -> str:
    (place.folder / "photo.jpg").mkdir()
    return place.predict("photo.jpg")


def explain_a_folder(place: Place) -> str:
    (place.folder / "photo.jpg").mkdir()
    return place.program("explain", "photo.jpg", "--model", place.model())


def broken_link(place: Place) -> str:
    (place.folder / "photo.jpg").symlink_to("gone.jpg")
    return place.predict("photo.jpg")


def address_without_server(place: Place) -> str:
    with socket.socket() as free:  # bound, and nobody listens
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/photo.jpg"
        line = place.refused(lambda: read_picture(url, timeout=5))
    return line.replace(url, "http://127.0.0.1:1/photo.jpg")


def no_path_and_no_base64(place: Place) -> str:
    return place.refused(lambda: read_picture("data:image/png;base64," + base64.b64encode(b"x" * 40).decode()))


BAD: dict[str, Case] = {
    "a PNG that ends in the middle": bad_file("photo.png", half("PNG")),
    "a JPEG that ends in the middle": bad_file("photo.jpg", half("JPEG")),
    "a GIF that ends in the middle": bad_file("photo.gif", half("GIF")),
    "a WebP that ends in the middle": bad_file("photo.webp", half("WEBP")),
    "a TIFF that ends in the middle": bad_file("photo.tiff", half("TIFF")),
    "a file of zero bytes": bad_file("photo.jpg", lambda _: b""),
    "text with the ending of an image": bad_file("photo.jpg", lambda _: b"<html>404</html>"),
    "a decompression bomb of 60 000 x 60 000": bad_file("photo.png", lambda _: png_of_size(60_000, 60_000)),
    "a size of 0 x 5": bad_file("photo.png", lambda _: png_of_size(0, 5)),
    "PostScript with the ending of an image": bad_file("photo.png", lambda _: EPS),
    "an SVG": bad_file("photo.png", lambda _: b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    "a NumPy array with pickled objects": bad_file("photo.png", lambda _: b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}"),
    "a float TIFF with NaN": bad_file("photo.tiff", floats([0.0, 0.5, float("nan")])),
    "a float TIFF with values of a radar": bad_file("photo.tiff", floats([-70.0, -3.5, 12.0])),
    "a folder named as an image, for `predict`": folder_named_as_image,
    "a folder named as an image, for `explain`": explain_a_folder,
    "a link to nothing": broken_link,
    "a name that is not there": lambda place: place.predict("gone.jpg"),
    "a URL at which nobody listens": address_without_server,
    "base64 of something else": no_path_and_no_base64,
}


def shown(*sources) -> np.ndarray:
    """(H, W, 3) as the model sees a file."""
    return picture_to_tensor(read_picture(*sources)).permute(1, 2, 0).numpy()


def save(place: Place, picture: Image.Image, name: str, **options) -> str:
    picture.save(place.folder / name, **options)
    return str(place.folder / name)


def as_rgb(
    make: Callable[[Image.Image], Image.Image], name: str, *, within: int = 0, **options
) -> Callable[[Place], None]:
    """The file shows what Pillow shows of the same picture as RGB, but for `within` levels."""

    def check(place: Place) -> None:
        picture = make(place.picture())
        expected = np.asarray(picture.convert("RGB"))
        assert len(np.unique(expected)) > 1
        found = shown(save(place, picture, name, **options))
        assert np.abs(found.astype(int) - expected).max() <= within

    return check


def sixteen_bits(place: Place) -> None:
    gray = np.asarray(place.picture().convert("L"))
    for name in ("photo.png", "photo.tiff"):
        path = save(place, Image.fromarray(gray.astype(np.uint16) * 257), name)
        assert np.array_equal(shown(path), np.repeat(gray[..., None], 3, -1))


def float_tiff(place: Place) -> None:
    gray = np.asarray(place.picture().convert("L"))
    for divisor in (1, 255):
        path = save(place, Image.fromarray((gray / divisor).astype(np.float32)), "photo.tiff")
        assert np.array_equal(shown(path), np.repeat(gray[..., None], 3, -1))


def frames(name: str) -> Callable[[Place], None]:
    def check(place: Place) -> None:
        first, second = place.picture(), Image.new("RGB", place.picture().size, "red")
        first = first.quantize(8) if name.endswith("gif") else first
        lossless = {"lossless": True} if name.endswith("webp") else {}
        path = save(place, first, name, save_all=True, append_images=[second], duration=40, **lossless)
        assert np.array_equal(shown(path), np.asarray(first.convert("RGB")))

    return check


TURNS = {1: None, 2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270"} | {
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def exif_turns(place: Place) -> None:
    picture = place.picture()
    for orientation, turn in TURNS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        expected = picture if turn is None else picture.transpose(Image.Transpose[turn])
        assert np.array_equal(shown(save(place, picture, f"{orientation}.png", exif=exif)), np.asarray(expected))


def broken_exif(place: Place) -> None:
    picture = place.picture()
    for number, exif in enumerate(
        (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\1")
    ):
        path = save(place, picture, f"{number}.jpg", exif=exif, quality=100)
        plain = save(place, picture, f"{number}_plain.jpg", quality=100)
        assert np.array_equal(shown(path), shown(plain))


def orientation_out_of_range(place: Place) -> None:
    exif = Image.Exif()
    exif[0x0112] = 42
    assert np.array_equal(shown(save(place, place.picture(), "photo.png", exif=exif)), np.asarray(place.picture()))


def color_profile(place: Place) -> None:
    for profile in (ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(), b"no profile"):
        path = save(place, place.picture(), "photo.png", icc_profile=profile)
        assert np.array_equal(shown(path), np.asarray(place.picture()))


def cmyk_jpeg(place: Place) -> None:
    path = save(place, place.picture().convert("CMYK"), "photo.jpg", quality=100, subsampling=0)
    assert np.abs(shown(path).astype(int) - np.asarray(place.picture())).max() < 6  # JPEG loses a bit


def other_ending(place: Place) -> None:
    path = place.folder / "photo.jpg"
    path.write_bytes(contents(place, "PNG"))
    assert np.array_equal(shown(path), np.asarray(place.picture()))


def base64_text(place: Place) -> None:
    text = base64.encodebytes(contents(place, "PNG")).decode()  # with line breaks
    for source in (text, f"data:image/png;base64,{text}"):
        assert np.array_equal(shown(source), np.asarray(place.picture()))


def hidden_colors(place: Place) -> None:
    picture = place.picture()
    clear = picture.copy()
    clear.putalpha(0)
    assert np.array_equal(shown(save(place, clear, "photo.png")), np.asarray(picture))


def palette_with_transparency(place: Place) -> None:
    picture = place.picture().quantize(16)
    for transparency in (3, bytes(range(16))):
        path = save(place, picture, "photo.png", transparency=transparency)
        assert np.array_equal(shown(path), np.asarray(picture.convert("RGB")))


def one_color_transparent(place: Place) -> None:
    for mode, key in (("L", 7), ("RGB", (1, 2, 3)), ("1", 0)):
        picture = place.picture().convert(mode)
        path = save(place, picture, "photo.png", transparency=key)
        assert np.array_equal(shown(path), np.asarray(picture.convert("RGB")))


def predicted(width: int, height: int) -> Callable[[Place], None]:
    """`predict` gives a map of the image's size."""

    def check(place: Place) -> None:
        from detr_panoptic.commands import main

        Image.new("RGB", (width, height), "teal").save(place.folder / "thin.png")
        assert main(["predict", "thin.png", "--model", str(place.model()), "--output", "out"]) == 0
        with Image.open("out/thin.png") as result:
            assert result.size == (width, height)

    return check


GOOD: dict[str, tuple[str, Callable[[Place], None]]] = {
    "1 x 501 pixels": ("a map of the same size", predicted(1, 501)),
    "501 x 1 pixels": ("a map of the same size", predicted(501, 1)),
    "30 000 x 10 pixels": ("a map of the same size", predicted(30_000, 10)),
    "one pixel": ("a map of the same size", predicted(1, 1)),
    "grayscale": ("the same three times", as_rgb(lambda p: p.convert("L"), "photo.png")),
    "grayscale with alpha (LA)": ("the gray; alpha is dropped", as_rgb(lambda p: p.convert("LA"), "photo.png")),
    "RGB with alpha": ("the colors, also where they are hidden; alpha is dropped", hidden_colors),
    "1-bit": ("black and white", as_rgb(lambda p: p.convert("1"), "photo.png")),
    "a palette": ("its colors", as_rgb(lambda p: p.quantize(16), "photo.png")),
    "a palette with transparency": ("its colors", palette_with_transparency),
    "one color declared transparent": ("that color", one_color_transparent),
    "CMYK TIFF": ("the colors without a profile", as_rgb(lambda p: p.convert("CMYK"), "photo.tiff")),
    "CMYK JPEG": ("the colors, not their negative", cmyk_jpeg),
    # Compressed: before 13, Pillow cannot read back what it writes without. Then its library converts, and rounds.
    "YCbCr TIFF": (
        "the colors",
        as_rgb(lambda p: p.convert("YCbCr"), "photo.tiff", within=1, compression="tiff_lzw"),
    ),
    "16-bit gray, PNG and TIFF": ("scaled to 8 bits, not clipped", sixteen_bits),
    "float TIFF": ("values up to 1 times 255, values up to 255 as they are", float_tiff),
    "animated GIF": ("the first frame", frames("photo.gif")),
    "animated WebP": ("the first frame", frames("photo.webp")),
    "TIFF of several pages": ("the first page", frames("photo.tiff")),
    "EXIF orientation, all eight": ("upright", exif_turns),
    "EXIF orientation that does not exist": ("as stored", orientation_out_of_range),
    "EXIF that is damaged": ("as stored", broken_exif),
    "an embedded color profile, good or broken": ("the stored values, as in COCO's training", color_profile),
    "a PNG named .jpg": ("what it is, whatever its name", other_ending),
    "base64 with line breaks or a data URL": ("the picture", base64_text),
}
