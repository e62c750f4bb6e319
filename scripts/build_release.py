"""Build the files of a release, check them, and use them as a stranger would.

python scripts/build_release.py [--output dist] [--environment FOLDER | --no-install] [--tag TAG]

1. a source distribution and a wheel; the wheel that the source distribution builds has the same files, bit for bit
2. twine's check of what the index would show, and that they hold what they should and nothing else
3. the wheel in a new environment with what it depends on: imported, a model loaded, `detr-panoptic demo`, and
   `mypy --strict` on a user's code
"""

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SNIPPET = ROOT / "tests" / "contract" / "user_snippet.py"
MAX_BYTES = 14 * 2**20  # the checkpoint may have 12 MB
NEEDED = (
    "detr_panoptic/__init__.py",
    "detr_panoptic/py.typed",
    "detr_panoptic/checkpoints/scenes/config.json",
    "detr_panoptic/checkpoints/scenes/model.safetensors",
    "detr_panoptic/checkpoints/scenes/preprocessor_config.json",
    "detr_panoptic/training/recipes/finetune.yaml",
    "*.dist-info/licenses/LICENSE",
    "*.dist-info/entry_points.txt",
)
LEFT_OUT = (".git", ".venv", "build", "dist", "*.egg-info", "outputs", "runs", ".*_cache", "__pycache__")
ALLOWED_SUFFIXES = {".py", ".typed", ".json", ".safetensors", ".yaml", ".js", ".css", ".html", ".md"}
FIRST_USE = """
import detr_panoptic
from detr_panoptic.checkpoints import BUNDLED
model = detr_panoptic.DetrPanopticForSegmentation.from_pretrained(BUNDLED)
print(detr_panoptic.__version__, sum(p.numel() for p in model.parameters()), "parameters")
"""


def main() -> int:
    """Returns 0 if the files are fit to be uploaded; stops with the reason if not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="emptied first")
    parser.add_argument("--environment", type=Path, help="of the stranger; kept. Default: a temporary one")
    parser.add_argument("--no-install", action="store_true", help="leave out the third step, which takes gigabytes")
    parser.add_argument("--tag", help="of the release: v and the version, which CHANGELOG.md has a section about")
    arguments = parser.parse_args()
    wheel, source = build(arguments.output)
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, source)
    problems = problems_of_wheel(wheel) + problems_of_source(source)
    if arguments.tag:
        problems += problems_of_tag(arguments.tag, wheel, (ROOT / "CHANGELOG.md").read_text())
    for problem in problems:
        sys.exit(f"not fit for a release: {problem}")
    if not arguments.no_install:
        with tempfile.TemporaryDirectory() as temporary:
            use(wheel, arguments.environment or Path(temporary) / "environment")
    for path in (wheel, source):
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")
    return 0


def build(output: Path, *options: str) -> tuple[Path, Path]:
    """A wheel by way of the source distribution, and the latter; compared with a wheel of the tree itself.

    Args:
        output: emptied first.
        options: of `python -m build`.
    """
    shutil.rmtree(output, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "tree"  # setuptools leaves files in the tree that it builds
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*LEFT_OUT))
        run(sys.executable, "-m", "build", *options, "--outdir", output, tree)
        run(sys.executable, "-m", "build", *options, "--wheel", "--outdir", temporary, tree)
        (wheel,), (source,) = output.glob("*.whl"), output.glob("*.tar.gz")
        if digests(wheel) != digests(Path(temporary) / wheel.name):
            sys.exit("not fit for a release: the source distribution builds another wheel than the tree")
    return wheel, source


def digests(wheel: Path) -> dict[str, str]:
    """What is in each file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def problems_of_wheel(wheel: Path) -> list[str]:
    """What a wheel lacks, and what has no place in it."""
    names = list(digests(wheel))
    problems = [f"the wheel lacks {name}" for name in NEEDED if not any(Path(n).match(name) for n in names)]
    for name in names:
        outside = not re.match(r"(detr_panoptic/|detr_panoptic-[^/]+\.dist-info/)", name)
        strange = name.startswith("detr_panoptic/") and Path(name).suffix not in ALLOWED_SUFFIXES
        if outside or strange:
            problems.append(f"the wheel holds {name}")
    shipped = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "detr_panoptic").rglob("*.py")}
    problems += [f"the wheel lacks {name}" for name in sorted(shipped - set(names))]
    if wheel.stat().st_size > MAX_BYTES:
        problems.append(f"the wheel has {wheel.stat().st_size} bytes, more than {MAX_BYTES}")
    return problems


def problems_of_source(source: Path) -> list[str]:
    """What a source distribution lacks, and what has no place in it."""
    with tarfile.open(source) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    problems = [
        f"the source distribution lacks {name}"
        for name in ("LICENSE", "README.md", "pyproject.toml", "src/detr_panoptic/py.typed")
        if name not in names
    ]
    left_out = ("tests", "docs", "outputs", ".github", ".ci")
    bloat = [name for name in names if name.startswith(left_out) or name.endswith((".png", ".jpg"))]
    return problems + [f"the source distribution holds {name}" for name in bloat]


def problems_of_tag(tag: str, wheel: Path, changelog: str) -> list[str]:
    """What does not fit the version of a wheel."""
    version = wheel.name.split("-")[1]
    problems = [] if tag == f"v{version}" else [f"the tag {tag} is not v{version}"]
    if not re.search(rf"^## {re.escape(version)}$", changelog, flags=re.MULTILINE):
        problems.append(f"CHANGELOG.md has no section {version}")
    return problems


def use(wheel: Path, environment: Path) -> None:
    """Installs the wheel with its dependencies and does what a newcomer does first."""
    python = environment / "bin" / "python"
    if not python.exists():
        venv.create(environment, with_pip=True)
    run(python, "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", wheel)
    run(python, "-m", "pip", "install", "--quiet", wheel, "mypy", "types-PyYAML")
    run(python, "-m", "pip", "check")
    with tempfile.TemporaryDirectory() as folder:
        run(python, "-c", FIRST_USE, folder=folder)
        run(environment / "bin" / "detr-panoptic", "demo", "--scenes", "4", folder=folder)
        shutil.copyfile(SNIPPET, Path(folder) / "snippet.py")
        run(python, "-m", "mypy", "--strict", "snippet.py", folder=folder)


def run(*words: str | Path, folder: Path | str | None = None) -> None:
    """Runs a program; leaves with its error if it fails."""
    print("$", *words, flush=True)
    done = subprocess.run([str(word) for word in words], cwd=folder, check=False)
    if done.returncode:
        sys.exit(f"not fit for a release: {' '.join(map(str, words[:4]))} … failed with {done.returncode}")


if __name__ == "__main__":
    sys.exit(main())
