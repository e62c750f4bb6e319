"""What a release uploads holds what it should and nothing else; scripts/build_release.py also installs and uses it."""

import io
import re
import runpy
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import detr_panoptic

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "build_release.py"))
problems_of_wheel, problems_of_source = SCRIPT["problems_of_wheel"], SCRIPT["problems_of_source"]
problems_of_tag = SCRIPT["problems_of_tag"]
DOCUMENTS = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
SETUPTOOLS = "77"  # what pyproject.toml asks of it


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """Wheel and source distribution, built with this environment's setuptools: an isolated one wants the network."""
    pytest.importorskip("setuptools", minversion=SETUPTOOLS)
    return SCRIPT["build"](tmp_path_factory.mktemp("release") / "dist", "--no-isolation")


def test_they_hold_what_they_should(files):
    wheel, source = files
    assert problems_of_wheel(wheel) == []
    assert problems_of_source(source) == []


def test_a_file_too_many_or_too_few_is_seen(files, tmp_path):
    wheel, _ = files
    spoiled = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(spoiled, "w") as new:
        for name in old.namelist():
            if name != "detr_panoptic/py.typed":
                new.writestr(name, old.read(name))
        new.writestr("tests/conftest.py", "")
        new.writestr("detr_panoptic/weights.bin", "")
    assert problems_of_wheel(spoiled) == [
        "the wheel lacks detr_panoptic/py.typed",
        "the wheel holds tests/conftest.py",
        "the wheel holds detr_panoptic/weights.bin",
    ]
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        for name in ("x-1/LICENSE", "x-1/README.md", "x-1/pyproject.toml", "x-1/tests/test_x.py"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert problems_of_source(tmp_path / "x.tar.gz") == [
        "the source distribution lacks src/detr_panoptic/py.typed",
        "the source distribution holds tests/test_x.py",
    ]


def test_a_tag_is_the_version_and_the_changelog_has_its_section():
    wheel, changelog = Path("detr_panoptic-1.2.0-py3-none-any.whl"), "## Unreleased\n\n## 1.2.0\n\n- It works.\n"
    assert problems_of_tag("v1.2.0", wheel, changelog) == []
    assert problems_of_tag("1.2.0", wheel, changelog) == ["the tag 1.2.0 is not v1.2.0"]
    assert problems_of_tag("v1.2.0", wheel, "## 1.2.0.post1\n") == ["CHANGELOG.md has no section 1.2.0"]


# ------ what stands in two places


def test_the_version_is_written_in_one_place():
    """Apart from CHANGELOG.md, which has a section for each."""
    places = [*DOCUMENTS, ROOT / "CITATION.cff", ROOT / "pyproject.toml", *(ROOT / "space").iterdir()]
    version = re.compile(rf"(?<![\w.]){re.escape(detr_panoptic.__version__)}(?![\w.])")
    found = {path.name for path in places if path.is_file() and version.search(path.read_text())}
    assert found <= {"CHANGELOG.md"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tests_that_a_document_names_exist(document):
    """`folder/file.py::function`; in SECURITY.md a function alone is one of the hostile files."""
    text = document.read_text()
    named = re.findall(r"`(tests/[\w/.]*)(?:::(\w+))?`", text)
    named += [("tests/commands/test_hostile_files.py", name) for name in re.findall(r"`(test_\w+)`", text)]
    for file, name in named:
        assert (ROOT / file).exists(), file
        assert not name or f"def {name}(" in (ROOT / file).read_text(), (file, name)


@pytest.mark.parametrize(
    ("name", "after"), [("SECURITY.md", "## Not promised"), ("docs/reliability.md", "| exit code")]
)
def test_every_promise_names_a_test(name, after):
    promises = re.findall(r"^- .*(?:\n  .*)*", (ROOT / name).read_text().partition(after)[0], flags=re.MULTILINE)
    assert len(promises) > 15
    assert [promise for promise in promises if "test_" not in promise] == []


def jobs(workflow):
    return yaml.safe_load((ROOT / ".github" / "workflows" / workflow).read_text())["jobs"]


def test_workflows_test_the_versions_of_python_that_the_package_supports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    versions = jobs("tests.yml")["tests"]["strategy"]["matrix"]["python"]
    python = "Programming Language :: Python :: 3."
    classifiers = [text for text in project["project"]["classifiers"] if text.startswith(python)]
    assert [f"{python}{version.partition('.')[2]}" for version in versions] == classifiers
    assert project["project"]["requires-python"] == f">={versions[0]}"
    assert project["tool"]["mypy"]["python_version"] == versions[0]
    assert project["tool"]["ruff"]["target-version"] == f"py{versions[0].replace('.', '')}"


def test_workflows_run_what_the_gate_runs():
    steps = [step for name in ("tests.yml", "weekly.yml") for job in jobs(name).values() for step in job["steps"]]
    gate = (ROOT / ".ci" / "run").read_text().partition("pip install")[2].splitlines()[1:]
    commands = [line for line in gate if re.match(r"(ruff|mypy|mkdocs|pytest)\b", line)]
    assert len(commands) >= 5
    assert set(commands) <= {step.get("run") for step in steps}
