"""`detr-panoptic push`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def push(
    folder: Annotated[Path, Parameter(help="Folder of a saved model and its image processor.")],
    repository: Annotated[str, Parameter(help="OWNER/NAME on the Hub; created if it does not exist.")],
    /,
    *,
    private: Annotated[bool, Parameter(help="Create a private repository.")] = False,
    revision: Annotated[str | None, Parameter(help="Branch; created if it does not exist.")] = None,
    message: Annotated[str | None, Parameter(help="Commit message.")] = None,
    evaluation: Annotated[
        Path | None, Parameter(help="Output folder of `evaluate` for this model: its PQ goes into the card.")
    ] = None,
    license: Annotated[str | None, Parameter(help="The Hub's identifier, such as apache-2.0.")] = None,
    dry_run: Annotated[bool, Parameter(help="Show the card and the files, and send nothing.")] = False,
) -> None:
    """Uploads a model to the Hugging Face Hub, with its code and a model card.

    Log in once with `hf auth login`, or set HF_TOKEN. A card that training wrote
    is kept; a folder without one gets a card made from what is known.

    For example:

        detr-panoptic push my_model OWNER/my-model --dry-run
        detr-panoptic push my_model OWNER/my-model --private
        detr-panoptic push my_model OWNER/my-model --evaluation val2017
    """
    from .. import push as upload

    result = upload(
        folder,
        repository,
        private=private,
        revision=revision,
        message=message,
        evaluation=evaluation,
        license=license,
        dry_run=dry_run,
    )
    if dry_run:
        print(result.card)
    print(result)
