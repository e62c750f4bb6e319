"""`push`: a saved model to the Hugging Face Hub, with its code and a card."""

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id

from ..data.contained_paths import path_inside
from ..data.plain_text import first_line
from ..evaluation import Evaluation
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from .card import CARD, CardFacts, MeasuredQuality, build_card, complete_card

PICTURE = re.compile(r"!\[[^]]*]\(\s*([^)\s:]+\.(?:png|jpe?g|webp|gif))\s*\)", re.IGNORECASE)
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
FAILURES = {
    401: f"The Hub does not accept this token: {LOG_IN}.",
    403: f"This token may not write to {{}}: {LOG_IN}.",
    404: f"The Hub has no {{}} that this token may see: check the name, or {LOG_IN}.",
}
AGAIN = "Run the same again: what has arrived is not sent twice."


@dataclass(frozen=True)
class PushedModel:
    """What `push` sent."""

    url: str | None
    """Address of the repository, or of its branch; None for a dry run."""
    files: dict[str, int]
    """Size in bytes by file name."""
    card: str
    """Text of the model card."""

    def __str__(self) -> str:
        """Returns a line for each file, and the address."""
        lines = [f"{size / 1e6:10.3f} MB  {name}" for name, size in self.files.items()]
        return "\n".join([*lines, "Nothing was sent (dry run)." if self.url is None else f"Pushed to {self.url}"])


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    evaluation: str | Path | Evaluation | None = None,
    license: str | None = None,
    dry_run: bool = False,
) -> PushedModel:
    """Puts a saved model on the Hub: weights, configuration, image processor, code and a card, in one commit.

    Of the other files, only the pictures that the card shows are sent. The card is the README.md that training wrote;
    if there is none, one is made from what is known.

    Args:
        folder: has the model and its image processor.
        repo_id: "OWNER/NAME", or "NAME" in your own namespace. Created if it does not exist.
        private: create a private repository.
        revision: branch, created if it does not exist. None: the main branch.
        message: the commit's message.
        evaluation: the result of `evaluate` for this model, or its output folder. Its PQ goes into the card.
        license: identifier on the Hub. None: the card's, or else the license of the code, apache-2.0.
        dry_run: prepare everything and send nothing.

    Raises:
        ValueError: the folder has no model of this package, the name is not valid, the evaluation cannot be read, or
            `private` is asked for a repository that is public.
        OSError: nobody is logged in, the token may not write, or the Hub cannot be reached.

    Examples:
        >>> from detr_panoptic import push
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> pushed = push(BUNDLED, "OWNER/my-model", dry_run=True)
        >>> sorted(pushed.files)[:2], pushed.url
        (['README.md', 'backbone.py'], None)
    """
    validate_repo_id(repo_id)
    if not dry_run and get_token() is None:
        raise OSError(f"Nobody is logged in to the Hub: {LOG_IN}.")
    if not dry_run and constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set, so nothing was sent.")
    quality = None if evaluation is None else MeasuredQuality.of(evaluation)
    facts = CardFacts(name=repo_id.rpartition("/")[2], repository=repo_id, quality=quality)
    with tempfile.TemporaryDirectory() as temporary:
        staging = Path(temporary)
        write_repository(Path(folder), staging, facts, license_name=license)
        files = [path for path in sorted(staging.rglob("*")) if path.is_file()]
        sizes = {path.relative_to(staging).as_posix(): path.stat().st_size for path in files}
        card = (staging / CARD).read_text(encoding="utf-8")
        try:
            url = None if dry_run else _upload(staging, repo_id, private=private, revision=revision, message=message)
        except ValueError:
            raise
        except Exception as error:  # huggingface_hub, httpx and hf_xet raise errors of their own
            raise OSError(_explain(error, repo_id)) from error
    return PushedModel(url, sizes, card)


def write_repository(folder: Path, output: Path, facts: CardFacts, *, license_name: str | None = None) -> None:
    """Writes the files of a repository: a model that was loaded and saved again, and its card with its pictures."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"`folder` must contain a saved model, got {folder} without a config.json.")
    model = DetrPanopticForSegmentation.from_pretrained(folder, dtype="auto")
    model.save_pretrained(output)
    DetrPanopticImageProcessor.from_pretrained(folder).save_pretrained(output)
    written = folder / CARD
    text = written.read_text(encoding="utf-8") if written.is_file() else str(build_card(model, facts))
    card = complete_card(text, facts, license_name=license_name)
    (output / CARD).write_text(str(card), encoding="utf-8")
    for link in PICTURE.findall(card.text):
        picture, target = path_inside(folder, link, CARD), output / link
        if picture.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, target)


def _upload(folder: Path, repo_id: str, *, private: bool, revision: str | None, message: str | None) -> str:
    """Sends a folder as one commit and returns its address."""
    api = HfApi()
    address = api.create_repo(repo_id, private=private or None, exist_ok=True)
    if private and not api.repo_info(address.repo_id).private:  # an existing one, for which `private` is ignored
        raise ValueError(f"`private`: {address.repo_id} exists and is public. Nothing was sent.")
    if revision is not None:
        api.create_branch(address.repo_id, branch=revision, exist_ok=True)
    message = message or f"Upload {address.repo_id.rpartition('/')[2]}"
    api.upload_folder(repo_id=address.repo_id, folder_path=folder, revision=revision, commit_message=message)
    return str(address) if revision is None else f"{address}/tree/{revision}"


def _explain(error: BaseException, repo_id: str) -> str:
    """Says in one line why an upload failed and what to do."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return f"The upload was interrupted ({first_line(error)}). {AGAIN}"
    status = cause.response.status_code
    if status >= 500 or status == 429:
        return f"The Hub is busy or down (status {status}). {AGAIN}"
    if status in FAILURES:
        return FAILURES[status].format(repo_id)
    return f"The Hub refused the upload (status {status}): {cause.server_message or first_line(cause)}"
