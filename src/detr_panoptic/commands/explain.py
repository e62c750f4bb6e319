"""`detr-panoptic explain`: where the model looked for each object."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..inference.old_loading import add_device_option, add_model_option, load_model, resolve_device
from .frame import CommandError, add_command, plain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from ..explanation.explanation import Explanation
    from .frame import CommandParser

DESCRIPTION = """
Show where the model looked for each object of a photograph. For IMAGE NAME.jpg the output folder gets

  NAME_segment_3.png  for each object a sheet: its mask and box, the attention maps from which the mask head made the
                      mask, and the decoder's cross-attention, layer by layer and head by head
  NAME.html           one page with all of them, and the image: point at a segment to see what it is

Bright is where attention is; the outline is the object's mask. docs/explaining.md says how to read the maps.
"""
EXAMPLES = """
detr-panoptic explain photo.jpg
detr-panoptic explain photo.jpg --model my_model --segments 2 5 --layer 1
detr-panoptic explain photo.jpg --head 3 --output attention
detr-panoptic explain photo.jpg --query 17
"""


def register(subparsers: argparse._SubParsersAction[CommandParser]) -> None:
    """Add the command and its options."""
    parser = add_command(
        subparsers,
        "explain",
        run,
        summary="see where the model looked",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="an image file")
    add_model_option(parser)
    parser.add_argument(
        "--output", type=Path, default=Path("explanations"), metavar="DIR", help="folder for the results"
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--segments", type=int, nargs="+", metavar="ID", help="these alone, by the ids on the page (default: all)"
    )
    chosen.add_argument(
        "--query", type=int, nargs="+", metavar="N", help="these queries, from 0, whether they became segments or not"
    )
    parser.add_argument(
        "--layer", type=int, metavar="N", help="decoder layer, from 1, to show by head (default: last)"
    )
    parser.add_argument("--head", type=int, metavar="N", help="show this head alone, from 1, in all layers")
    parser.add_argument(
        "--threshold", type=float, metavar="SCORE", help="drop segments with a lower score (default: the model's own)"
    )
    add_device_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    if arguments.output.is_file():
        raise CommandError(f"`--output {arguments.output}` is a file: name a folder for the results.")
    if arguments.threshold is not None and not 0 <= arguments.threshold <= 1:
        raise CommandError(f"`--threshold` must be from 0 to 1, got {arguments.threshold}.")

    from ..inference.old_prediction import read_image

    image = read_image(arguments.image)
    model, processor = load_model(arguments.model, resolve_device(arguments.device))
    for name, most in (("layer", model.config.decoder_layers), ("head", model.config.num_heads)):
        value = getattr(arguments, name)
        if value is not None and not 1 <= value <= most:
            raise CommandError(f"`--{name}` must be from 1 to {most}, as many as the model has, got {value}.")

    from ..explanation.explanation import explain_image

    explanation = explain_image(
        image,
        arguments.image.name,
        model,
        processor,
        threshold=arguments.threshold,
        all_masks=arguments.query is not None,
    )
    _check_choice(explanation, arguments.segments, arguments.query)
    write(explanation, arguments)
    return 0


def write(explanation: Explanation, arguments: argparse.Namespace) -> None:
    """Write the sheets and the page, and say which they are."""
    from rich.console import Console
    from rich.table import Table

    from ..explanation.explanation import write_explanation_page
    from ..visualization import draw_attention

    if arguments.query is not None:
        chosen = {f"query_{query}": explanation.of_query(query) for query in arguments.query}
    else:
        ids = arguments.segments or [entry["id"] for entry in explanation.segments_info]
        chosen = {f"segment_{segment_id}": explanation.of_segment(segment_id) for segment_id in ids}
    arguments.output.mkdir(parents=True, exist_ok=True)
    table = Table("object", "file")
    sheets = {}
    for anchor, attention in chosen.items():
        sheet = draw_attention(explanation.image, attention, layer=arguments.layer, head=arguments.head)
        file = arguments.output / f"{arguments.image.stem}_{anchor}.png"
        sheet.save(file)
        sheets[anchor] = (f"{attention.title}: {attention.subtitle}", sheet)
        table.add_row(plain(attention.title), plain(file.name))
    page = arguments.output / f"{arguments.image.stem}.html"
    links = {
        entry["id"]: f"#segment_{entry['id']}"
        for entry in explanation.segments_info
        if f"segment_{entry['id']}" in sheets
    }
    write_explanation_page(page, explanation, sheets, links)
    console = Console(highlight=False)
    if sheets:
        console.print(table)
    else:
        console.print("Nothing above the threshold.")
    console.print(f"Open {page}", markup=False, soft_wrap=True)


def _check_choice(explanation: Explanation, segments: Sequence[int] | None, queries: Sequence[int] | None) -> None:
    """Refuse ids that the image has not."""
    known = [entry["id"] for entry in explanation.segments_info]
    for segment_id in segments or ():
        if segment_id not in known:
            found = f"1 to {max(known)}" if known else "none"
            raise CommandError(f"`--segments` must be among those of the image, {found}, got {segment_id}.")
    for query in queries or ():
        if not 0 <= query < explanation.num_queries:
            raise CommandError(f"`--query` must be from 0 to {explanation.num_queries - 1}, got {query}.")
