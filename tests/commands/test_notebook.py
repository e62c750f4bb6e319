"""The notebook runs from top to bottom and shows what its text says."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))
STORED_BYTES = 50_000
CELL_SECONDS = 600  # on a busy machine


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path):
    assert path.stat().st_size < STORED_BYTES
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_notebooks_lead_somewhere(path):
    links = re.findall(r"\]\(([^)]+)\)", "".join(cell.source for cell in nbformat.read(path, as_version=4).cells))
    assert links
    assert all((path.parent / link).is_file() for link in links)


@pytest.mark.slow
@pytest.mark.promise
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # jupyter's and zmq's own
def test_from_data_to_hub_runs_from_top_to_bottom(tmp_path):
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    NotebookClient(notebook, timeout=CELL_SECONDS, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    words = "".join(output.get("text", "") for output in shown)
    assert sum("image/png" in output.get("data", {}) for output in shown) == 4
    assert "No problems found." in words
    before, after = (float(re.search(rf"PQ {when}: ([\d.]+)", words)[1]) for when in ("before", "after"))
    assert after > before
    difference = re.search(r"largest difference from PyTorch: (\S+)", words)
    assert float(difference[1]) < 1e-3  # of logits up to 20
    assert "Nothing was sent" in words
