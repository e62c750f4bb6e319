"""The way of a folder to the Hugging Face Hub, and its failures as sentences that say how to go on."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from ..commands.frame import CommandError, explain
from ..data.plain_text import first_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKENS = "https://huggingface.co/settings/tokens"
LOG_IN = f"log in with `hf auth login`, or set HF_TOKEN to a token that may write ({TOKENS})"
AGAIN = (
    "Start the same command again: what has arrived is not sent twice, and nothing in the repository changes before "
    "all is there."
)
UNAUTHORIZED, FORBIDDEN, NOT_FOUND, TOO_MANY, SERVER_ERROR = 401, 403, 404, 429, 500


def upload(
    folder: Path, repository: str, *, private: bool = False, revision: str | None = None, message: str | None = None
) -> str:
    """Sends a folder, all of it as one commit, to a repository that is made if need be.

    Args:
        folder: everything in it is sent.
        repository: OWNER/NAME, or NAME in the namespace of whoever is logged in.
        private: of a new repository.
        revision: branch, made if need be; None: the main one.
        message: of the commit.

    Returns:
        Where it can be looked at.

    Raises:
        CommandError: it did not work; says how to go on.
    """
    if get_token() is None:
        raise CommandError(f"Nobody is logged in to the Hub: {LOG_IN}.")
    api = HfApi()
    try:
        api.whoami()
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        repository = address.repo_id
        if private and not api.repo_info(repository).private:
            raise CommandError(
                f"{repository} exists and is public: nothing was sent. Make it private in its settings "
                f"({address}/settings), or take another name."
            )
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            commit_message=message or f"Upload {repository.rpartition('/')[2]}",
        )
    except CommandError:
        raise
    except Exception as error:  # the library's, httpx's, hf_xet's and the system's
        sys.stderr.write("\n")  # a progress bar may have left its line open
        raise CommandError(explain_failure(error, repository)) from error
    return str(address) if revision is None else f"{address}/tree/{revision}"


def explain_failure(error: Exception, repository: str) -> str:
    """What to do after an upload that failed, as one line."""
    failures = list(_chain(error))
    if any(isinstance(failure, OfflineModeIsEnabled) for failure in failures):
        return "HF_HUB_OFFLINE is set, so that nothing is sent: unset it, and start the same command again."
    answer = next((failure for failure in failures if isinstance(failure, HfHubHTTPError)), None)
    if answer is None:
        cause = failures[-1]
        return f"The upload broke off ({explain(cause)}). {AGAIN}"
    status = answer.response.status_code
    if status == UNAUTHORIZED:
        return f"The Hub does not accept this token: {LOG_IN}."
    if status == FORBIDDEN:
        return f"This token may not write to {repository}: take one that may ({TOKENS}), or a name of your own."
    if status == NOT_FOUND:
        return f"The Hub has no {repository} that this token may see: check the name, or {LOG_IN}."
    if status == TOO_MANY or status >= SERVER_ERROR:
        return f"The Hub is busy or down (it answered {status}): wait a while. {AGAIN}"
    return f"The Hub refused (it answered {status}): {answer.server_message or first_line(answer)}"


def _chain(error: BaseException | None) -> Iterator[Exception]:
    """An error and those that it came from, the last first."""
    while isinstance(error, Exception):
        yield error
        error = error.__cause__ or error.__context__
