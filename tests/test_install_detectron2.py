"""The installer, without network: what it packs, what it leaves alone, and what it says."""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import pytest

from loupe import install_detectron2 as installer

TOY_SOURCES = {
    "LICENSE": "the licence",
    "setup.py": "raise SystemExit('never run')",
    "detectron2/__init__.py": '__version__ = "0.6"\n',
    "detectron2/masks.py": "def f(np, x):\n    return x.astype(np.bool), np.float32, np.bool_\n",
    "detectron2/transform.py": "def g(Image):\n    return Image.LINEAR\n",
    "detectron2/model_zoo/configs/Base.yaml": "NOTE: np.bool\n",
    "projects/PointRend/point_rend/__init__.py": "",
    "projects/DeepLab/deeplab/__init__.py": "",
    "projects/Panoptic-DeepLab/panoptic_deeplab/__init__.py": "",
    "projects/DensePose/densepose/__init__.py": "",
    "../outside.py": "",
}
WORKING = installer.Probe(True, "Detectron2 X")
BROKEN = installer.Probe(False, "ImportError: no fvcore")


def write_archive(path: Path, sources: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in sources.items():
            member = tarfile.TarInfo(f"toy-0.6/{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return installer.build_wheel(write_archive(tmp_path / "toy.tar.gz", TOY_SOURCES), tmp_path)


@pytest.fixture
def pip_calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would be given to pip, in order; nothing is run."""
    calls: list[list[str]] = []
    monkeypatch.setattr(installer, "run_pip", lambda arguments, *_, **__: calls.append(arguments))
    return calls


def pretend_probes(monkeypatch: pytest.MonkeyPatch, *probes: installer.Probe) -> None:
    remaining = iter(probes)
    monkeypatch.setattr(installer, "probe_detectron2", lambda: next(remaining))


def run_installer(*arguments: str) -> str:
    return installer.install(installer.parse_arguments(list(arguments)))


def test_projects_move_below_the_package_and_nothing_else_comes_along(wheel: Path):
    assert sorted(name for name in zipfile.ZipFile(wheel).namelist() if "-info" not in name) == [
        "detectron2/_C.py",
        "detectron2/__init__.py",
        "detectron2/masks.py",
        "detectron2/model_zoo/configs/Base.yaml",
        "detectron2/projects/deeplab/__init__.py",
        "detectron2/projects/panoptic_deeplab/__init__.py",
        "detectron2/projects/point_rend/__init__.py",
        "detectron2/transform.py",
    ]


def test_names_that_numpy_and_pillow_removed_are_replaced_in_code_alone(wheel: Path):
    files = zipfile.ZipFile(wheel)
    text = files.read("detectron2/masks.py").decode()
    assert "x.astype(bool), np.float32, np.bool_" in text
    assert files.read("detectron2/transform.py").endswith(b"return Image.BILINEAR\n")
    assert files.read("detectron2/model_zoo/configs/Base.yaml") == b"NOTE: np.bool\n"


def test_the_record_lists_every_file_with_its_digest(wheel: Path):
    contents = zipfile.ZipFile(wheel)
    record = f"detectron2-{installer.WHEEL_VERSION}.dist-info/RECORD"
    lines = dict(line.split(",", 1) for line in contents.read(record).decode().splitlines())
    expected = {record: ","}
    for name in set(contents.namelist()) - {record}:
        digest = base64.urlsafe_b64encode(hashlib.sha256(contents.read(name)).digest())
        size = contents.getinfo(name).file_size
        expected[name] = f"sha256={digest.decode().rstrip('=')},{size}"
    assert lines == expected


def test_the_same_archive_gives_the_same_bytes(wheel: Path, tmp_path: Path):
    first = wheel.read_bytes()
    again = installer.build_wheel(tmp_path / "toy.tar.gz", tmp_path)
    assert again.read_bytes() == first
    assert {entry.date_time[0] for entry in zipfile.ZipFile(again).infolist()} == {1980}


def test_pip_installs_the_wheel_under_the_name_detectron2(wheel: Path, tmp_path: Path):
    target = tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(target), str(wheel)], check=True)
    assert (target / "detectron2/projects/point_rend/__init__.py").is_file()


def test_an_archive_of_something_else_is_refused(tmp_path: Path):
    archive = write_archive(tmp_path / "other.tar.gz", {"other/__init__.py": ""})
    with pytest.raises(installer.InstallError, match="holds no detectron2"):
        installer.build_wheel(archive, tmp_path)


def test_an_archive_with_another_digest_is_refused_with_both_digests(tmp_path: Path):
    (tmp_path / "archive").write_text("tampered")
    actual = hashlib.sha256(b"tampered").hexdigest()
    with pytest.raises(installer.InstallError, match=f"{actual}, expected {'0' * 64}"):
        installer.verify_sha256(tmp_path / "archive", "0" * 64)


def test_pip_checks_the_digest_before_it_runs_the_archive(
    tmp_path: Path, pip_calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(installer.importlib.metadata, "version", lambda name: "25.0")
    monkeypatch.setattr(installer, "ARCHIVE_SHA256", hashlib.sha256(b"").hexdigest())
    (tmp_path / "pb1-detectron2-0.6.tar.gz").write_bytes(b"")
    installer.download_archive(tmp_path)
    assert "--require-hashes" in pip_calls[0]
    assert installer.ARCHIVE_SHA256 in (tmp_path / "requirement.txt").read_text()


@pytest.mark.parametrize("version", ["22.0.2", "23.2.1", "25.3"])
def test_a_pip_that_accepts_the_archive_downloads_it(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(installer.importlib.metadata, "version", lambda name: version)
    assert installer.pip_for_download(tmp_path) is None


def test_a_pip_that_refuses_the_archive_hands_over_to_an_older_one(
    tmp_path: Path, pip_calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(installer.importlib.metadata, "version", lambda name: "26.3")
    (tmp_path / "pip-25.3-py3-none-any.whl").touch()
    assert installer.pip_for_download(tmp_path) == str(tmp_path / "pip-25.3-py3-none-any.whl")
    assert pip_calls[0][-1] == "pip>=23,<26"


def test_the_stand_in_names_the_missing_operator_and_the_remedy():
    module = types.ModuleType("detectron2._C")
    exec(installer.COMPILED_PART_STAND_IN, module.__dict__)
    assert not module.has_cuda()
    assert "Python-only" in module.get_compiler_version()
    assert "Python-only" in module.get_cuda_version()
    with pytest.raises(AttributeError, match=r"nms_rotated: .* --source git"):
        _ = module.nms_rotated


@pytest.mark.parametrize(
    ("version", "direct_url", "expected"),
    [
        (installer.WHEEL_VERSION, {"url": "file:///tmp/x.whl"}, "the registry's pb1-detectron2"),
        ("0.6", {"url": "file:///tmp/clone", "dir_info": {}}, "from file:///tmp/clone"),
        ("0.6", {"url": "git:x", "vcs_info": {"commit_id": "02b5"}}, "from git:x at 02b5"),
        ("0.6", {}, "a source that left no record"),
    ],
)
def test_the_sources_are_told_apart(version: str, direct_url: dict, expected: str):
    found = {"version": version, "direct_url": direct_url, "compiled": True, "location": "there"}
    assert expected in installer.describe_installation(found)


def test_the_detectron2_of_this_environment_has_what_loupe_needs():
    assert installer.probe_detectron2().works


def test_a_working_detectron2_is_left_alone(
    pip_calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    pretend_probes(monkeypatch, WORKING)
    assert run_installer("--source", "git").startswith("Nothing to do: Detectron2 X")
    assert pip_calls == []


def test_a_broken_detectron2_is_replaced_and_the_reason_said(
    pip_calls: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pretend_probes(monkeypatch, BROKEN, WORKING)
    assert run_installer("--source", "git") == "Installed Detectron2 X."
    assert "because it does not import: ImportError: no fvcore" in capsys.readouterr().out
    requirement = f"git+{installer.GIT_URL}@{installer.GIT_REVISION}"
    assert [call[-1] for call in pip_calls] == ["wheel", requirement, "detectron2"]


def test_force_replaces_a_working_detectron2(
    pip_calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    pretend_probes(monkeypatch, WORKING, WORKING)
    run_installer("--source", "git", "--force")
    assert "--force-reinstall" in pip_calls[1]


def test_an_installation_that_does_not_import_is_an_error(
    pip_calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    pretend_probes(monkeypatch, BROKEN, BROKEN)
    with pytest.raises(installer.InstallError, match="it does not import: ImportError: no fvcore"):
        run_installer("--source", "git")


def test_wheels_in_a_folder_are_installed_without_an_index(
    tmp_path: Path, pip_calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    pretend_probes(monkeypatch, BROKEN, WORKING)
    run_installer("--find-links", str(tmp_path))
    assert all("--no-index" in call and str(tmp_path) in call for call in pip_calls)


def test_a_folder_of_wheels_that_is_missing_is_named(
    pip_calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    pretend_probes(monkeypatch, BROKEN)
    with pytest.raises(installer.InstallError, match="nowhere: no such folder"):
        run_installer("--find-links", "nowhere")


def test_writing_wheels_installs_nothing(tmp_path: Path, pip_calls: list[list[str]]):
    assert "nothing installed" in run_installer("--source", "git", "--wheel-dir", str(tmp_path))
    assert pip_calls[-1][0] == "wheel"
    assert installer.OPENCV in pip_calls[-1]


def test_an_environment_without_torch_is_told_to_install_it_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    found = installer.importlib.util.find_spec
    monkeypatch.setattr(
        installer.importlib.util, "find_spec", lambda name: None if name == "torch" else found(name)
    )
    monkeypatch.setattr(sys, "argv", ["install_detectron2.py"])
    assert installer.main() == 1
    assert "no torch. Install torch and torchvision first" in capsys.readouterr().err


def test_a_failing_pip_is_an_error_with_the_remedy():
    with pytest.raises(installer.InstallError, match=r"pip no-such-command.*do this"):
        installer.run_pip(["no-such-command"], "do this")
