"""File names from annotation files and indices: none may lead out of its folder."""

from pathlib import Path, PureWindowsPath

HUB_REPOSITORIES = ("datasets--", "models--", "spaces--")  # prefixes of folders in the Hub's cache


def path_inside(folder: Path, file_name: str, where: str = "") -> Path:
    """Returns the absolute path of a relative file name, with either kind of slash, in a folder.

    The folder itself may be a symbolic link, but links below it may not lead out of it. Links of the Hub's cache from
    a snapshot to the blobs of the same repository are followed. `where` begins the error message.

    Raises:
        ValueError: the name is absolute, empty, contains "..", or is a link that leads out of the folder.
    """
    prefix = f"{where}: " if where else ""
    name = PureWindowsPath(file_name)  # reads both kinds of slash
    if name.anchor or not name.name or ".." in name.parts or "\0" in file_name:
        raise ValueError(f"{prefix}expected a file name inside {folder}, got {file_name!r}")
    path = (folder / file_name).absolute()
    below = [path, *path.parents][: len((folder / file_name).parts) - len(folder.parts)]
    if any(part.is_symlink() for part in below):  # resolving a path takes much longer than this
        target, root = path.resolve(), folder.resolve()
        if not (target.is_relative_to(root) or _is_blob_of(root, target)):
            raise ValueError(f"{prefix}expected a file inside {folder}, got the link {file_name!r} to {target}")
    return path


def _is_blob_of(root: Path, target: Path) -> bool:
    """Returns whether a file is a blob of the cached Hub repository that a folder belongs to."""
    repository = next((path for path in root.parents if path.name.startswith(HUB_REPOSITORIES)), None)
    return repository is not None and target.is_relative_to(repository / "blobs")
