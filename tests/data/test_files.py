"""Atomic writes."""

import errno
import os

import pytest

from detr_panoptic.data.files import whole_files, whole_folder, written_whole


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_when_it_is_complete(tmp_path, durable):
    path = tmp_path / "folder" / "a.json"
    for text in ("1", "2"):
        with written_whole(path, durable=durable) as part:
            assert part.suffix == ".json"
            part.write_text(text)
            assert not path.exists() or path.read_text() != text
        assert path.read_text() == text
    with pytest.raises(KeyboardInterrupt), written_whole(path) as part:  # noqa: PT012  the interrupt comes in between
        part.write_text("half")
        raise KeyboardInterrupt
    assert [(file.name, file.read_text()) for file in path.parent.iterdir()] == [("a.json", "2")]


def test_files_of_a_folder_are_replaced_together(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "other").write_text("1")
    with pytest.raises(OSError, match=r"The model .*full"), whole_files(tmp_path, "The model") as part:  # noqa: PT012
        (part / "a").write_text("2")
        raise RuntimeError("the disk is full")
    assert (tmp_path / "a").read_text() == "1"
    with whole_files(tmp_path, "The model") as part:
        (part / "a").write_text("2")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a": "2", "other": "1"}


def test_a_folder_appears_when_it_is_complete(tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(RuntimeError), whole_folder(folder) as part:  # noqa: PT012
        (part / "a").write_text("")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    folder.mkdir()
    with whole_folder(folder) as part:
        (part / "a").write_text("")
        assert not list(folder.iterdir())
    assert [path.name for path in folder.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["file", "full", "busy"])
def test_what_exists_is_left_alone(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    (tmp_path / "busy.partial").mkdir()
    with pytest.raises(ValueError, match=name), whole_folder(tmp_path / name):
        pytest.fail("the context must not be entered")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "busy.partial", "file", "full"]


@pytest.mark.parametrize("whole", [written_whole, whole_folder])
def test_only_the_error_of_a_full_disk_gets_the_name_of_the_output(tmp_path, whole):
    """Other errors come of what is read or computed in between, and keep their text."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    others = [OSError("image file is truncated"), OSError(errno.EIO, "a broken disk"), ConnectionError("no answer")]
    texts = [str(error) for error in others]
    for error in (full, *others):
        with pytest.raises(OSError, match=r"No space|truncated|broken|no answer"), whole(tmp_path / "out"):
            raise error
    assert (full.filename, [str(error) for error in others]) == (str(tmp_path / "out"), texts)
