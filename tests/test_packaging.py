"""The wheel: what it contains, what it asks for, and that it imports away from the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGED = ["setup.py", "MANIFEST.in", "pyproject.toml", "LICENSE", "README.md"]
# Compiling takes long and is tested elsewhere; without it the wheel must import all the same.
WITHOUT_OPERATOR = {**os.environ, "LOUPE_BUILD_CPU": "0", "LOUPE_BUILD_CUDA": "0"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy because setuptools writes into the folder it builds from."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGED:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    for name in ("projects", "configs", "weights"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(source / "dist"), str(source)]
    subprocess.run(command, check=True, env=WITHOUT_OPERATOR, stdin=subprocess.DEVNULL)
    return zipfile.ZipFile(next((source / "dist").glob("loupe-*.whl")))


@pytest.fixture(scope="module")
def requirements(wheel: zipfile.ZipFile) -> dict[str, str]:
    """The wheel's unconditional requirements: name -> range."""
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    lines = Parser().parsestr(wheel.read(name).decode()).get_all("Requires-Dist")
    matches = [
        re.match(r"([\w.-]+)\s*\(?([^)]*)", line) for line in lines if "extra ==" not in line
    ]
    return {match[1]: match[2] for match in matches}


def test_the_wheel_contains_every_module_of_the_package(wheel: zipfile.ZipFile):
    modules = {path.relative_to(ROOT / "projects") for path in ROOT.glob("projects/loupe/**/*.py")}
    packed = {Path(name) for name in wheel.namelist() if name.endswith(".py")}
    assert packed == modules


def test_a_wheel_built_without_a_compiler_holds_no_compiled_file(wheel: zipfile.ZipFile):
    assert [name for name in wheel.namelist() if name.endswith((".so", ".pyd"))] == []


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in ROOT.glob("projects/loupe/**/*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_every_requirement_has_a_lower_and_an_upper_bound(requirements: dict[str, str]):
    assert requirements
    assert [
        name for name, bounds in requirements.items() if ">=" not in bounds or "<" not in bounds
    ] == []


def test_opencv_comes_without_a_display(requirements: dict[str, str]):
    assert "opencv-python-headless" in requirements
    assert "opencv-python" not in requirements


def test_the_versions_of_this_environment_lie_within_the_ranges(wheel: zipfile.ZipFile):
    from importlib.metadata import version

    from packaging.requirements import Requirement

    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    lines = Parser().parsestr(wheel.read(name).decode()).get_all("Requires-Dist")
    wanted = [Requirement(line) for line in lines]
    always = [item for item in wanted if item.marker is None or item.marker.evaluate({"extra": ""})]
    outside = [
        f"{item} (found {version(item.name)})"
        for item in always
        if not item.specifier.contains(version(item.name).split("+")[0], prereleases=True)
    ]
    assert outside == []


def test_the_wheel_imports_away_from_the_repository(wheel: zipfile.ZipFile, tmp_path: Path):
    wheel.extractall(tmp_path)
    command = [sys.executable, "-W", "ignore", "-c", "import loupe; print(loupe.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.splitlines()[-1]) == tmp_path / "loupe" / "__init__.py"
