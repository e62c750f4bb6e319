"""How much the page takes from strangers."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one server.

    Args:
        max_upload_bytes: of a file.
        max_pixels: of a picture, decoded.
        concurrency: pictures that are segmented at once.
        queue: pictures that wait; beyond, people are asked to try again.
        max_seconds: for one picture, from its turn on; and for one upload.

    Raises:
        ValueError: one of them is not positive; names it.
    """

    max_upload_bytes: int
    max_pixels: int
    concurrency: int
    queue: int
    max_seconds: float

    def __post_init__(self) -> None:
        """Check them."""
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"`{name}` must be positive, got {value}.")
