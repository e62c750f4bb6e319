"""Install the oldest versions that pyproject.toml allows into a new environment, and run the tests there.

python scripts/test_lowest_versions.py [folder for the environment] [-- arguments for pytest]

The extra `export` wants a newer PyTorch than the package: it is not installed, and its tests skip.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from itertools import chain
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parents[1]
OWN_NAME = "detr-panoptic"
NEWER_EXTRA = "export"


def main() -> int:
    """Returns the exit code of pytest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="kept, and used again if it exists; none: temporary")
    parser.add_argument("pytest", nargs="*", default=[], help="arguments for pytest, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        python = folder / "bin" / "python"
        if not python.exists():
            venv.create(folder, with_pip=True)
        pins = folder / "lowest.txt"
        pins.write_text("\n".join(lowest_versions()) + "\n")
        install = [python, "-m", "pip", "install", "--quiet", "--constraint", pins, "-e", f"{ROOT}[test]"]
        subprocess.run(install, check=True)
        print(pins.read_text())
        return subprocess.run([python, "-m", "pytest", *arguments.pytest], cwd=ROOT, check=False).returncode


def lowest_versions() -> list[str]:
    """`name==version` for every requirement of pyproject.toml, but those of `NEWER_EXTRA`, that has a lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [texts for name, texts in project["optional-dependencies"].items() if name != NEWER_EXTRA]
    requirements = [*project["dependencies"], *chain.from_iterable(extras)]
    bounds = (re.fullmatch(r"([\w.-]+)(?:\[[^]]*\])?>=([\w.]+)(?:,.*)?", text) for text in requirements)
    lowest: dict[str, Version] = {}
    for bound in bounds:
        if bound and bound[1] != OWN_NAME:
            lowest[bound[1]] = Version(bound[2])
    return sorted(f"{name}=={version}" for name, version in lowest.items())


if __name__ == "__main__":
    sys.exit(main())
