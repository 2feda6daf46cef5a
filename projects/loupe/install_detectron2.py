#!/usr/bin/env python3
"""Install Detectron2 into the environment of the Python that runs this file.

Detectron2 is not published in the package registry under its own name. A Detectron2 that already
works is left alone, whatever its source. Otherwise there are three ways to get one:

* ``--source registry`` (default): the source archive of version 0.6 that the registry does have,
  ``pb1-detectron2``. Its Python files are those of the official tag v0.6, but its C++ sources are
  missing, so it cannot be built as it stands. This tool verifies it by SHA-256 and packs the
  Python part as a wheel: seconds, no compiler. Nothing that Loupe uses lives in the C++ part.
* ``--source git``: the official repository, with its C++ part: minutes, needs git and a compiler.
* ``--find-links DIR``: wheels written earlier by ``--wheel-dir DIR``, for machines off the network.

Only the standard library and pip are used; pip's own configuration decides where it downloads.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ARCHIVE_REQUIREMENT = "pb1-detectron2==0.6"
ARCHIVE_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
WHEEL_VERSION = "0.6+loupe"
GIT_URL = "https://github.com/facebookresearch/detectron2"
GIT_REVISION = "02b5c4e295e990042a714712c21dc79b731e8833"

# From version 26 on, pip rejects the archive's metadata for a direct URL in an extra that nobody
# asks for ("cannot declare direct URL dependencies"); an older pip then does the download.
FIRST_PIP_THAT_REFUSES = 26
DOWNLOADING_PIP = "pip>=23,<26"

NETWORK_REMEDY = (
    "Check the network and pip's configuration (`pip config list`), or use --find-links."
)

# fvcore and antlr4 (below hydra-core) are source archives that need these two, unisolated;
# detectron2.model_zoo 0.6 needs pkg_resources, which setuptools 81 no longer has.
BUILD_TOOLS = ("setuptools>=64,<81", "wheel")

# The archive's own list, less what only caffe2 export and LazyConfig.to_py import.
REQUIREMENTS = """
    Pillow>=7.1 matplotlib numpy pycocotools>=2.0.2 tensorboard
    termcolor>=1.1 yacs>=0.1.8 tabulate cloudpickle tqdm>4.29.0
    fvcore>=0.1.5,<0.1.6 iopath>=0.1.7,<0.1.10 omegaconf>=2.1,<2.4 hydra-core>=1.1 setuptools<81
"""

# Detectron2 imports cv2 but requires none of the distributions that provide it. This one needs no
# libGL; it is installed unless another is there.
OPENCV = "opencv-python-headless"

# Where the archive's folders go in the wheel; model-zoo configs already lie inside the package.
PACKAGE_FOLDERS = {
    "detectron2": "detectron2",
    "projects/PointRend/point_rend": "detectron2/projects/point_rend",
    "projects/DeepLab/deeplab": "detectron2/projects/deeplab",
    "projects/Panoptic-DeepLab/panoptic_deeplab": "detectron2/projects/panoptic_deeplab",
}

NUMPY_ALIAS = re.compile(r"\bnp\.(bool|int|float|object)\b")
PILLOW_ALIAS = re.compile(r"\bImage\.LINEAR\b")

COMPILED_PART_STAND_IN = '''\
"""Stand-in for Detectron2's compiled operators, which this Python-only build does not contain."""


def get_compiler_version():
    return "none (Python-only build)"


def get_cuda_version():
    return "none (Python-only build)"


def has_cuda():
    return False


def __getattr__(name):
    raise AttributeError(
        f"detectron2._C.{name}: this build of Detectron2 has no compiled operators. Install the "
        "official one to use it: python tools/install_detectron2.py --source git --force"
    )
'''

# Imports all that Loupe uses, then tells where it came from.
PROBE = """
import importlib.metadata, json
import detectron2.checkpoint, detectron2.config, detectron2.data, detectron2.engine
import detectron2.evaluation, detectron2.model_zoo, detectron2.modeling
import detectron2.projects.point_rend
from detectron2 import _C
try:
    distribution = importlib.metadata.distribution("detectron2")
    version, direct_url = distribution.version, distribution.read_text("direct_url.json")
except importlib.metadata.PackageNotFoundError:
    version, direct_url = detectron2.__version__, None
print(json.dumps({
    "version": version,
    "location": detectron2.__path__[0],
    "compiled": not (_C.__file__ or "").endswith(".py"),
    "direct_url": json.loads(direct_url or "{}"),
}))
"""


class InstallError(RuntimeError):
    """Something that the user can put right; the message says how."""


class Probe(NamedTuple):
    """What importing Detectron2 in a fresh interpreter gave: a description or the error."""

    works: bool
    text: str


def describe_installation(found: dict) -> str:
    """Say in one line which Detectron2 was found, from what the probe printed."""
    direct_url = found["direct_url"]
    if found["version"] == WHEEL_VERSION:
        source = f"the registry's {ARCHIVE_REQUIREMENT}, packed by this tool"
    elif "vcs_info" in direct_url:
        source = f"{direct_url['url']} at {direct_url['vcs_info'].get('commit_id', '?')}"
    elif "url" in direct_url:
        source = direct_url["url"]
    else:
        source = "a source that left no record"
    operators = "with" if found["compiled"] else "without"
    return (
        f"Detectron2 {found['version']} from {source}, {operators} compiled operators, "
        f"in {found['location']}"
    )


def probe_detectron2() -> Probe:
    """Import what Loupe needs of Detectron2 in a fresh interpreter, away from this folder."""
    with tempfile.TemporaryDirectory() as elsewhere:
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROBE],
            cwd=elsewhere,
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode != 0:
        return Probe(False, (result.stderr.strip() or "it ends without a message").splitlines()[-1])
    return Probe(True, describe_installation(json.loads(result.stdout.strip().splitlines()[-1])))


def run_pip(arguments: list[str], remedy: str, pip: str | None = None) -> None:
    """Run pip (the environment's, or the wheel `pip`) and turn a failure into an InstallError."""
    command = [sys.executable, *([f"{pip}/pip"] if pip else ["-m", "pip"]), *arguments]
    if subprocess.run(command, check=False).returncode != 0:
        raise InstallError(f"`{' '.join(command)}` failed (its message is above). {remedy}")


def require_module(name: str, remedy: str) -> None:
    """Raise an InstallError with the remedy unless the module `name` can be found."""
    if importlib.util.find_spec(name) is None:
        raise InstallError(f"{sys.executable} has no {name}. {remedy}")


def pip_for_download(folder: Path) -> str | None:
    """Return the wheel of a pip that accepts the archive; None if the environment's own does."""
    version = importlib.metadata.version("pip")
    if int(version.split(".")[0]) < FIRST_PIP_THAT_REFUSES:
        return None
    print(f"pip {version} refuses the archive's metadata: downloading it with {DOWNLOADING_PIP}.")
    run_pip(
        ["download", "--quiet", "--no-deps", "--dest", str(folder), DOWNLOADING_PIP],
        "Check the network, or install an older pip by hand and run this again.",
    )
    return str(next(folder.glob("pip-*.whl")))


def download_archive(folder: Path) -> Path:
    """Download the registry's source archive into `folder`, its SHA-256 verified."""
    pip = pip_for_download(folder)
    requirement = folder / "requirement.txt"
    # With the hash in the requirement, pip verifies the archive before it runs its setup.py.
    requirement.write_text(f"{ARCHIVE_REQUIREMENT} --hash=sha256:{ARCHIVE_SHA256}\n")
    name = ARCHIVE_REQUIREMENT.split("==")[0]
    run_pip(
        ["download", "--quiet", "--no-deps", "--no-binary", name, "--no-build-isolation"]
        + ["--require-hashes", "--dest", str(folder), "--requirement", str(requirement)],
        f"If the registry does not have {ARCHIVE_REQUIREMENT} or another archive under that name, "
        "use --source git, or --find-links with wheels written elsewhere by --wheel-dir.",
        pip=pip,
    )
    archive = next(folder.glob("*detectron2*.tar.gz"))
    verify_sha256(archive, ARCHIVE_SHA256)
    return archive


def verify_sha256(path: Path, expected: str) -> None:
    """Raise an InstallError unless the file's SHA-256 is the expected one."""
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != expected:
        raise InstallError(
            f"{path.name} has SHA-256 {actual}, expected {expected}: it is not the archive this "
            "tool was written for. Use --source git."
        )


def modernise(source: str) -> tuple[str, int]:
    """Replace names that numpy and Pillow have removed; return the text and how many there were."""
    source, numpy_count = NUMPY_ALIAS.subn(r"\1", source)
    source, pillow_count = PILLOW_ALIAS.subn("Image.BILINEAR", source)
    return source, numpy_count + pillow_count


def wheel_path_of(member: str) -> str | None:
    """Where a file of the archive (its top folder removed) goes in the wheel; None if nowhere."""
    for folder, target in PACKAGE_FOLDERS.items():
        if member.startswith(f"{folder}/"):
            return target + member[len(folder) :]
    return None


def package_files(archive: Path) -> tuple[dict[str, bytes], int]:
    """Read the wheel's files from the archive; return path -> content and the number of edits."""
    files = {"detectron2/_C.py": COMPILED_PART_STAND_IN.encode()}
    edits = 0
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            parts = PurePosixPath(member.name).parts[1:]
            stored = tar.extractfile(member) if member.isfile() else None
            if stored is None or not parts or ".." in parts:
                continue
            content = stored.read()
            if parts == ("LICENSE",):
                files[f"detectron2-{WHEEL_VERSION}.dist-info/licenses/LICENSE"] = content
            path = wheel_path_of("/".join(parts))
            if path is not None and path.endswith(".py"):
                text, count = modernise(content.decode())
                content, edits = text.encode(), edits + count
            if path is not None:
                files[path] = content
    return files, edits


def metadata_files() -> dict[str, bytes]:
    """Return the wheel's own metadata: path -> content."""
    metadata = [
        f"Metadata-Version: 2.1\nName: detectron2\nVersion: {WHEEL_VERSION}",
        "Summary: Detectron2 0.6, Python part, with names that numpy and Pillow removed replaced.",
        f"Home-page: {GIT_URL}",
        "License: Apache-2.0",
        "Requires-Python: >=3.10",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS.split()),
    ]
    wheel = ["Wheel-Version: 1.0", "Generator: install_detectron2", "Root-Is-Purelib: true"]
    folder = f"detectron2-{WHEEL_VERSION}.dist-info"
    return {
        f"{folder}/METADATA": ("\n".join(metadata) + "\n").encode(),
        f"{folder}/WHEEL": ("\n".join([*wheel, "Tag: py3-none-any"]) + "\n").encode(),
    }


def record_line(path: str, content: bytes) -> str:
    """Return a file's line in a wheel's RECORD."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{path},sha256={digest},{len(content)}"


def build_wheel(archive: Path, folder: Path) -> Path:
    """Pack the archive's Python part as a wheel in `folder`; the same input gives the same bytes.

    Raises:
        InstallError: if the archive holds no Detectron2.
    """
    files, edits = package_files(archive)
    if "detectron2/__init__.py" not in files:
        raise InstallError(f"{archive} holds no detectron2/__init__.py. Use --source git.")
    files.update(metadata_files())
    record = f"detectron2-{WHEEL_VERSION}.dist-info/RECORD"
    lines = [record_line(path, content) for path, content in sorted(files.items())]
    files[record] = "\n".join([*lines, f"{record},,\n"]).encode()
    target = folder / f"detectron2-{WHEEL_VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path)  # its fixed date keeps the wheel reproducible
            entry.external_attr = 0o644 << 16
            wheel.writestr(entry, content, zipfile.ZIP_DEFLATED)
    print(f"Packed {target.name}: {len(files)} files, {edits} outdated names replaced.")
    return target


def obtain(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Return pip's arguments that name the Detectron2 wanted, downloaded where necessary."""
    if arguments.find_links:
        if not Path(arguments.find_links).is_dir():
            raise InstallError(f"--find-links {arguments.find_links}: no such folder.")
        print(f"Installing from the wheels in {arguments.find_links}, without network.")
        return ["detectron2"]
    run_pip(["install", "--quiet", *BUILD_TOOLS], NETWORK_REMEDY)
    if arguments.source == "git":
        requirement = f"git+{GIT_URL}@{GIT_REVISION}"
        print(f"Building {requirement}; its C++ part takes minutes (MAX_JOBS limits the jobs).")
        return [requirement]
    print(f"Taking the registry's {ARCHIVE_REQUIREMENT} (no compiler needed).")
    return [str(build_wheel(download_archive(folder), folder))]


def deliver(arguments: argparse.Namespace) -> None:
    """Write the wheels or install, as the command line asks."""
    remedy = NETWORK_REMEDY
    if arguments.source == "git":
        remedy = "Check that git, a C++ compiler and the repository are there."
    options = ["--quiet", "--no-build-isolation"]
    with tempfile.TemporaryDirectory() as folder:
        wanted = obtain(arguments, Path(folder))
        if arguments.wheel_dir:
            options += ["--wheel-dir", arguments.wheel_dir]
            run_pip(["wheel", *options, *wanted, OPENCV], remedy)
            return
        if arguments.find_links:
            options += ["--no-index", "--find-links", arguments.find_links]
            remedy = "The folder must hold what --wheel-dir wrote, for this version of Python."
        # First the package alone: pip keeps one of the same version even if it is broken, and must
        # not remove the present one before the new one is built. Then what it requires.
        run_pip(["install", *options, "--force-reinstall", "--no-deps", *wanted], remedy)
        opencv = [] if importlib.util.find_spec("cv2") else [OPENCV]
        run_pip(["install", *options, "detectron2", *opencv], remedy)


def install(arguments: argparse.Namespace) -> str:
    """Do what the command line asks; return the closing line.

    Raises:
        InstallError: with the remedy.
    """
    require_module("pip", "Add it with `python -m ensurepip`, or make the environment with venv.")
    require_module("torch", "Install torch and torchvision first (`make install` does).")
    if arguments.wheel_dir:
        deliver(arguments)
        return f"Wrote Detectron2 and its dependencies to {arguments.wheel_dir}; nothing installed."
    probe = probe_detectron2()
    if probe.works and not arguments.force:
        return f"Nothing to do: {probe.text}. (--force replaces it.)"
    reason = "--force was given" if probe.works else f"it does not import: {probe.text}"
    print(f"Installing Detectron2, because {reason}.")
    deliver(arguments)
    probe = probe_detectron2()
    if not probe.works:
        raise InstallError(
            f"Installed, but it does not import: {probe.text}. Compare the versions of torch, "
            "numpy and Pillow with setup.py, or try the other --source with --force."
        )
    return f"Installed {probe.text}."


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--source", choices=["registry", "git"], default="registry")
    parser.add_argument("--force", action="store_true", help="replace a Detectron2 that works")
    offline = parser.add_mutually_exclusive_group()
    offline.add_argument("--wheel-dir", help="write wheels to this folder instead of installing")
    offline.add_argument("--find-links", help="install from the wheels in this folder, offline")
    return parser.parse_args(arguments)


def main() -> int:
    """Run the tool; return the exit status."""
    try:
        print(install(parse_arguments()))
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
