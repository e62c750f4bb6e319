"""Settings of a run from the command line: flags win over the file, the file over the recipe, it over the defaults."""

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from .arguments import ARCHITECTURE, TrainingArguments, section_types, value_type, without_architecture
from .recipes import PRETRAINED_BACKBONE, RECIPES, find_recipe


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """One flag for every field, `--recipe` and `--config`, to be read by `read_training_arguments`."""
    parser.add_argument(
        "--recipe", metavar="NAME", help="defaults for a purpose: " + ", ".join(RECIPES) + " (docs/training.md)"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML file with `recipe` and the sections " + ", ".join(section_types()),
    )
    for kind in section_types().values():
        group = parser.add_argument_group(str(kind.__doc__).rstrip("."))
        types_of = get_type_hints(kind)
        for f in fields(kind):
            expected, _ = value_type(types_of[f.name])
            flag: dict[str, Any] = {"type": expected, "metavar": expected.__name__.upper()}
            if expected is bool:
                flag = {"action": argparse.BooleanOptionalAction}
            group.add_argument(
                "--" + f.name.replace("_", "-"),
                default=argparse.SUPPRESS,
                help=f.metadata["help"] + _shown_default(f.default),
                **flag,
            )


def read_training_arguments(parsed: argparse.Namespace) -> TrainingArguments:
    """Settings from parsed flags, the file that `--config` names and the recipe that either of them names.

    Raises:
        ValueError: the file is no YAML mapping, there is no such recipe, or as `TrainingArguments.from_dict`.
    """
    settings = read_yaml(parsed.config) if parsed.config else {}
    for name, kind in section_types().items():
        given = {f.name: getattr(parsed, f.name) for f in fields(kind) if hasattr(parsed, f.name)}
        settings[name] = {**(settings.get(name) or {}), **given}
    settings["recipe"] = parsed.recipe or settings.get("recipe")
    if settings["recipe"] is None:
        return TrainingArguments.from_dict(settings)
    recipe = find_recipe(settings["recipe"]).arguments
    # A recipe starts from a checkpoint or from an architecture; who names one does not want the recipe's other. In the
    # place of a checkpoint comes a pretrained backbone: the recipes for few images even leave it as it is.
    if settings["model"].get("model") is not None:
        recipe = replace(recipe, model=without_architecture(recipe.model))
    elif recipe.model.model is not None and settings["model"].keys() & set(ARCHITECTURE):
        start = PRETRAINED_BACKBONE.backbone_weights
        recipe = replace(recipe, model=replace(recipe.model, model=None, backbone_weights=start))
    return TrainingArguments.from_dict(settings, recipe)


def read_yaml(path: Path) -> dict[str, Any]:
    """The nested dictionaries of a configuration file.

    Raises:
        ValueError: it cannot be read, or is no mapping of sections.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"`--config {path}` cannot be read as YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError(f"`--config {path}` cannot be read as YAML: it is nested too deeply.") from error
    if not isinstance(content, dict) or not all(
        isinstance(value, dict | None) for name, value in content.items() if name != "recipe"
    ):
        raise ValueError(f"`--config {path}` must hold sections ({', '.join(section_types())}) with keys.")
    return content


class _PlainLoader(yaml.SafeLoader):
    """Plain values alone, each written out: with aliases, a page can stand for more than fits into memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse an alias; no setting here is long enough to need one."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read", event.start_mark)
        return super().compose_node(parent, index)


def _shown_default(value: Any) -> str:
    if value is None or value is False:
        return ""
    return f" (default: {value:.4g})" if isinstance(value, float) else f" (default: {value})"
