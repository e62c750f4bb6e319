"""Names of files that other files give, such as annotations or an index of shards: none leads out of its folder."""

from pathlib import Path, PureWindowsPath

HUB_REPOSITORIES = ("datasets--", "models--", "spaces--")  # beginnings of folders in the Hub's cache


def path_inside(folder: Path, file_name: str, where: str) -> Path:
    """Absolute path of a name in a folder.

    The folder itself may be a symbolic link, what is below it may not lead out of it by one. The Hub's cache is made
    of links, from a repository's snapshots to its blobs: these are followed.

    Args:
        folder: that must not be left.
        file_name: with either kind of slash.
        where: of the error.

    Raises:
        ValueError: the name is absolute, empty, climbs, or is a link that leads out.
    """
    name = PureWindowsPath(file_name)  # reads both kinds of slash
    if name.anchor or not name.name or ".." in name.parts or "\0" in file_name:
        raise ValueError(f"{where}: expected a file name inside {folder}, got {file_name!r}.")
    path = (folder / file_name).absolute()
    below = [path, *path.parents][: len((folder / file_name).parts) - len(folder.parts)]
    if any(part.is_symlink() for part in below):  # without a link there is nothing to resolve, which takes far longer
        target, root = path.resolve(), folder.resolve()
        if not (target.is_relative_to(root) or _is_blob_of(root, target)):
            raise ValueError(f"{where}: expected a file inside {folder}, got the link {file_name!r} to {target}.")
    return path


def file_inside(folder: Path, file_name: str, where: str, *, may_be_missing: bool = False) -> Path:
    """`path_inside` of a file that must exist, unless what reads it later says that it does not."""
    path = path_inside(folder, file_name, where)
    if not may_be_missing and not path.is_file():
        raise ValueError(f"{where}: expected the file {path}, which does not exist.")
    return path


def _is_blob_of(root: Path, target: Path) -> bool:
    """Whether a file is where the Hub's cache keeps the contents of the repository that a folder belongs to."""
    repository = next((path for path in root.parents if path.name.startswith(HUB_REPOSITORIES)), None)
    return repository is not None and target.is_relative_to(repository / "blobs")
