"""Generated scenes: endless images of land and sea with exact panoptic annotations.

A scene is a list of layers, painted one over the other; the topmost layer that covers at least half of a pixel owns
it. Shadows, reflections and surf are visible but own nothing. A segment of which too little is visible is not
painted, so every pixel belongs to what it shows and none is void. The same seed always gives the same scene.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context

import numpy as np
from datasets import Dataset
from PIL import Image

from ..data.categories import Categories
from ..data.lazy_records import dataset_of
from ..data.records import Record, ids_to_rgb, measure_segments, panoptic_features
from ..segment_ids import MAX_ID
from . import backdrops
from .backdrops import Place
from .painting import LIGHTS, Patch, float_color
from .things import THING_KINDS, ThingKind

UNSEEN_SEED = 77_000_000  # seeds from here on are not used in training

_THINGS = ("house", "tree", "sheep", "car", "boat", "ball", "bird", "balloon")
_STUFF = ("sky", "mountain", "sea", "sand", "grass", "road")
SCENE_CATEGORIES = Categories(
    names=_THINGS + _STUFF,
    is_thing=(True,) * len(_THINGS) + (False,) * len(_STUFF),
    # With gaps, as in most real data: code that takes them for label ids fails.
    category_ids=(1, 2, 3, 5, 6, 8, 9, 10, 101, 102, 104, 105, 107, 108),
)
"""Classes of the scenes: 8 things and 6 kinds of stuff."""
MIN_SIDE = 64  # pixels; in smaller scenes most things would be specks
MIN_SEGMENT_AREA = 12  # pixels
MIN_SEGMENT_SHARE = 0.0005  # of the picture
SEEDS_PER_DATASET = 2**32
# Grounds from the horizon to the lower border; each takes about an equal part.
_LANDSCAPES = (
    *("sea sand", "sea sand grass", "sea sand grass road", "sea grass road", "grass road"),
    *("grass sea sand", "grass sea sand road", "grass sea grass"),
)


@dataclass(frozen=True)
class Layer:
    """One thing or piece of stuff."""

    name: str  # of its category
    patch: Patch  # its colors and the pixels it covers
    effect: Patch | None = None  # a shadow, reflection or surf, painted first; its pixels belong to what it falls on


def make_scene(seed: int, *, height: int = 256, width: int = 256) -> Record:
    """Makes one scene of at least 64x64 pixels: a canonical record with random segment ids of up to 24 bits.

    The seed, from 0 to below 2**63, is the `image_id` of the record.

    Raises:
        ValueError: the seed or the size is out of range.

    Examples:
        >>> make_scene(7, height=64, width=96)["image"].size
        (96, 64)
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"`seed` must lie in [0, 2**63), got {seed}.")
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"`height` and `width` must be at least {MIN_SIDE}, got {height} and {width}.")
    rng = np.random.default_rng(seed)
    horizon, light = height * rng.uniform(0.28, 0.5), LIGHTS[rng.integers(len(LIGHTS))]
    place = Place(height, width, horizon, float(rng.uniform(0.08, 0.92)), light)
    backdrop = _backdrop_layers(place, rng)
    return compose_scene([*backdrop, *_thing_layers(place, rng, backdrop)], rng, image_id=seed)


def compose_scene(layers: Sequence[Layer], rng: np.random.Generator, *, image_id: int) -> Record:
    """Paints layers, clipped to the canvas, the first covering all of it, in this order; annotates what is visible."""
    height, width = layers[0].patch.coverage.shape
    layers = _visible_layers(list(layers), height, width)
    segments, ids = _annotate(layers, rng, height, width)
    return {
        "image": _paint(layers, rng, height, width),
        "image_id": image_id,
        "file_name": f"scene_{image_id}.png",
        "segmentation": Image.fromarray(ids_to_rgb(ids)),
        "segments_info": segments,
    }


def scenes_dataset(count: int, *, seed: int = 0, height: int = 256, width: int = 256, workers: int = 0) -> Dataset:
    """Makes a dataset of `count` scenes in memory, with the columns of `panoptic_features`.

    Two seeds, below 2**31, have no scene in common; `make_scene(image_id, ...)` makes a row again. `workers` is the
    number of processes, which does not change the scenes; 0 uses this process.

    Raises:
        ValueError: the count, the seed or the size is out of range.

    Examples:
        >>> scenes_dataset(3, height=64, width=64).num_rows
        3
    """
    if not 0 <= seed < 2**31:
        raise ValueError(f"`seed` must lie in [0, 2**31), got {seed}.")
    if not 0 < count <= SEEDS_PER_DATASET:
        raise ValueError(f"`count` must lie in [1, 2**32], got {count}.")
    seeds = range(seed * SEEDS_PER_DATASET, seed * SEEDS_PER_DATASET + count)
    make = partial(_encoded_scene, height=height, width=width)
    with get_context("spawn").Pool(workers) if workers else nullcontext() as pool:
        rows = list(pool.imap(make, seeds, chunksize=32) if pool else map(make, seeds))
    return dataset_of(rows, panoptic_features())


def _encoded_scene(seed: int, height: int, width: int) -> Record:
    """Returns a scene as `datasets` stores it: decoded images take ten times the memory."""
    return panoptic_features().encode_example(make_scene(seed, height=height, width=width))


def _backdrop_layers(place: Place, rng: np.random.Generator) -> list[Layer]:
    """Returns sky, mountains, and the grounds of a landscape from far to near."""
    layers = [Layer("sky", backdrops.sky(place, rng))]
    rises = sorted(rng.uniform(0.2, 0.8, rng.choice(3, p=(0.3, 0.35, 0.35))), reverse=True)
    hazes = rng.uniform(0.25, 0.5) + 0.2 * np.arange(len(rises))[::-1]  # the high range is far, the low one before it
    for rise, haze in zip(rises, hazes, strict=True):
        layers.append(Layer("mountain", backdrops.mountain(place, rng, rise=rise, haze=haze)))
    landscape = _LANDSCAPES[rng.integers(len(_LANDSCAPES))].split()
    grounds = [name for name in landscape if name != "road"]
    for index, name in enumerate(grounds):
        edge = _ground_edge(place, rng, name, index / len(grounds))
        shore = index > 0 and grounds[index - 1] == "sea"
        ground = backdrops.GROUNDS[name](place, rng, edge)
        layers.append(Layer(name, ground, backdrops.foam(place, edge) if shore else None))
        if name == "sea" and index == 0 and rng.random() < 0.35:
            layers.append(_island(place, rng))
    if "road" in landscape:
        row = rng.uniform(0.74, 0.86) * place.height
        middle = row + 0.03 * place.height * backdrops.ridge(rng, place.width, (1, 2), 0.3)
        layers.append(Layer("road", backdrops.road(place, rng, middle, 0.075 * min(place.height, place.width))))
    return layers


def _ground_edge(place: Place, rng: np.random.Generator, name: str, share: float) -> np.ndarray:
    """Returns the upper edge (W,) of a ground that begins at `share` of the way from the horizon down, in rows."""
    start = place.horizon + (place.height - place.horizon) * share * rng.uniform(0.85, 1.1)
    if name == "sea" and share == 0:
        return np.full(place.width, round(start), dtype=np.float64)
    phase, waves = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1.3)
    curve = np.sin(phase + waves * np.linspace(0, 2 * np.pi, place.width))
    roughness = 0.3 if name == "grass" else 0.1
    wiggle = backdrops.ridge(rng, place.width, (12, 60), 0.4)
    return start + 0.02 * place.height * (curve + roughness * wiggle)


def _island(place: Place, rng: np.random.Generator) -> Layer:
    """Returns a hill of sand in the sea near the horizon."""
    base = place.horizon + (place.height - place.horizon) * rng.uniform(0.1, 0.2)
    columns = (np.arange(place.width) / place.width - rng.uniform(0.1, 0.9)) / rng.uniform(0.1, 0.2)
    top = base - 0.05 * place.height * (np.exp(-(columns**2)) * 1.4 - 0.35)
    land = backdrops.sand(place, rng, top)
    # Its foot is the water line; above it the hill, below it the sea again.
    above = np.clip(base - np.arange(place.height, dtype=np.float32), 0, 1)[:, None]
    return Layer("sand", Patch(land.color * above[..., None], land.coverage * above))


def _owners(layers: Iterable[Layer], height: int, width: int) -> np.ndarray:
    """Returns (H, W) int16, the index of the layer that owns each pixel."""
    owners = np.zeros((height, width), dtype=np.int16)
    for index, layer in enumerate(layers):
        owners[layer.patch.window][layer.patch.coverage >= 0.5] = index
    return owners


def _thing_layers(place: Place, rng: np.random.Generator, backdrop: list[Layer]) -> list[Layer]:
    """Returns things on the grounds that suit them, from far to near."""
    owners = _owners(backdrop, place.height, place.width)
    names = np.array([layer.name for layer in backdrop])
    fitting = [kind for kind in THING_KINDS if set(kind[1].grounds) & set(names[np.unique(owners)])]
    placed: list[tuple[float, Layer]] = []
    kind, foot = fitting[0], (0.0, 0.0)
    for _ in range(rng.integers(5, 15)):
        # The next thing often stands beside the last one and hides a part of it.
        together = bool(placed) and rng.random() < 0.4
        kind = kind if together else fitting[rng.integers(len(fitting))]
        for _attempt in range(12):
            near = foot[0] + rng.normal(0, 0.12) * place.width, foot[1] + rng.normal(0, 0.03) * place.height
            anywhere = rng.uniform(0, place.width), rng.uniform(0.06, 1) * place.height
            column, row = near if together else anywhere
            if not (0 <= column < place.width and 0 <= row < place.height):
                continue
            if names[owners[int(row), int(column)]] in kind[1].grounds:
                foot = column, row
                placed.append(_thing_layer(place, rng, kind, foot))
                break
    return [layer for _, layer in sorted(placed, key=lambda entry: entry[0])]


def _thing_layer(
    place: Place, rng: np.random.Generator, kind: tuple[str, ThingKind], foot: tuple[float, float]
) -> tuple[float, Layer]:
    """Returns a thing at `foot` (column, row), and its place in the paint order: small when far."""
    name, look = kind
    flies = "sky" in look.grounds
    # On the ground the size follows from the distance; in the sky nothing tells it.
    near = rng.beta(1.2, 2.0) if flies else (foot[1] - place.horizon) / (place.height - place.horizon)
    unit = look.size * min(place.height, place.width) * (0.2 + 0.8 * np.clip(near, 0, 1)) * rng.uniform(0.85, 1.15)
    sprite = look.draw(unit, rng, place.light).shaded(
        rng, place.light, light_x=2 * place.sun_x - 1, relief=look.relief, texture=look.texture
    )
    haze = 0.3 * (1 - np.clip(near, 0, 1)) ** 2
    color = (1 - haze) * sprite.color
    color += haze * sprite.coverage[..., None] * float_color(place.light.sky_horizon)
    height, width = sprite.coverage.shape
    patch = replace(sprite, color=color.clip(0, 1), top=round(foot[1]) - height, left=round(foot[0] - width / 2))
    effect = None
    if "sea" in look.grounds:
        effect = backdrops.reflection(patch, foot)
    elif not flies:
        effect = backdrops.shadow(patch, place, foot)
    order, size = unit - 2 * place.height if flies else foot[1], (place.height, place.width)
    return order, Layer(name, patch.clipped(*size), effect.clipped(*size) if effect else None)


def _segment_keys(layers: list[Layer]) -> np.ndarray:
    """Returns the segment of each layer as the index of its first layer: one per stuff class, one per thing."""
    names = [layer.name for layer in layers]
    return np.array([names.index(name) if name in _STUFF else index for index, name in enumerate(names)])


def _visible_layers(layers: list[Layer], height: int, width: int) -> list[Layer]:
    """Returns the layers without segments of which too little is visible; what lies below gets their pixels."""
    smallest = max(MIN_SEGMENT_AREA, MIN_SEGMENT_SHARE * height * width)
    while True:
        keys = _segment_keys(layers)
        areas = np.bincount(keys[_owners(layers, height, width)].ravel(), minlength=len(layers))
        # The sky stays. One segment at a time, since what it uncovers may then be large enough.
        tiny = [key for key in np.unique(keys)[1:] if areas[key] < smallest]
        if not tiny:
            return layers
        least = min(tiny, key=lambda key: areas[key])
        layers = [layer for layer, key in zip(layers, keys, strict=True) if key != least]


def _annotate(
    layers: list[Layer], rng: np.random.Generator, height: int, width: int
) -> tuple[list[dict[str, object]], np.ndarray]:
    """Returns the entries of `segments_info`, in paint order, and the id map (H, W)."""
    keys = _segment_keys(layers)
    id_of_layer = (rng.choice(MAX_ID, len(layers), replace=False) + 1)[keys]
    ids = id_of_layer[_owners(layers, height, width)]
    segments = [
        {"id": int(id_of_layer[key]), "label_id": SCENE_CATEGORIES.names.index(layers[key].name), "iscrowd": 0}
        for key in np.unique(keys)
    ]
    return measure_segments(ids, segments), ids


def _paint(layers: list[Layer], rng: np.random.Generator, height: int, width: int) -> Image.Image:
    canvas = np.zeros((height, width, 3), dtype=np.float32)
    for layer in layers:
        for patch in (layer.effect, layer.patch):
            if patch is not None:
                view = canvas[patch.window]
                view *= 1 - patch.coverage[..., None]
                view += patch.color
    canvas += 0.012 * rng.standard_normal(canvas.shape, dtype=np.float32)  # sensor noise
    return Image.fromarray((canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8))
