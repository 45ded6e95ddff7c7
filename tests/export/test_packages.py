"""Packages by name: whole and checked in the cache, or not there at all. The registries are folders and scripts."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from edge_ravlm.errors import DataError, StorageError
from edge_ravlm.export.data import packages as module
from edge_ravlm.export.data.packages import Package, cache_folder, cached, fetch, main, npm_registry, packages

pytestmark = pytest.mark.export

CONTENT = b"a picture"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGE_RAVLM_CACHE", str(folder))
    return folder


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only file of the only registry that pip may ask."""
    registry = tmp_path / "registry"
    registry.mkdir()
    path = registry / "tiny_pictures-1.0-py3-none-any.whl"
    info = "tiny_pictures-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_pictures/one.png", CONTENT)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-pictures\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(registry))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return path


def knows(monkeypatch: pytest.MonkeyPatch, package: Package) -> None:
    monkeypatch.setattr(module, "packages", lambda: {"tiny": package})


def pypi(wheel: Path, name: str = "tiny-pictures", sha256: str = "") -> Package:
    found = sha256 or hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Package(registry="pypi", package=name, version="1.0", sha256=found, licence="CC0-1.0")


def debian(sha256: str = hashlib.sha256(CONTENT).hexdigest()) -> Package:
    return Package(registry="debian", package="tiny", licence="CC0-1.0", files={"usr/share/tiny/one.png": sha256})


def a_debian_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unpack: str, download: str = "") -> None:
    """apt-get that brings an empty package, and dpkg-deb that runs ``unpack`` on the folder ``$3``."""
    tools = tmp_path / "tools"
    tools.mkdir()
    download = download or 'case "$*" in *download*) : > tiny_1.0_all.deb;; esac'
    for name, body in (("apt-get", download), ("dpkg-deb", unpack)):
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")


def npm(sha256: str) -> Package:
    return Package(registry="npm", package="@scope/tiny", version="1.0.0", sha256=sha256, licence="CC0-1.0")


@pytest.fixture
def npm_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An npm registry that is a folder."""
    folder = tmp_path / "npm"
    (folder / "@scope/tiny/-").mkdir(parents=True)
    monkeypatch.setenv("npm_config_registry", f"{folder.as_uri()}/")
    return folder


def publish(folder: Path, member: tarfile.TarInfo, content: bytes = CONTENT) -> str:
    """Puts a tarball with that member into the registry, and returns its SHA-256."""
    path = folder / "@scope/tiny/-/tiny-1.0.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        member.size = len(content) if member.isreg() else 0
        archive.addfile(member, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


UNPACK = f'mkdir -p "$3/usr/share/tiny" && printf %s "{CONTENT.decode()}" > "$3/usr/share/tiny/one.png"'


def test_a_wheel_is_fetched_checked_and_unpacked(wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knows(monkeypatch, pypi(wheel))
    assert cached("tiny") is None
    folder = fetch("tiny")
    assert (folder / "tiny_pictures/one.png").read_bytes() == CONTENT
    assert cached("tiny") == folder == cache / "tiny"
    assert [path.name for path in cache.iterdir()] == ["tiny"], "no scratch stays behind"


def test_a_cached_package_needs_no_registry(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knows(monkeypatch, pypi(wheel))
    folder = fetch("tiny")
    wheel.unlink()
    assert fetch("tiny") == folder


def test_another_file_than_expected_is_refused(wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knows(monkeypatch, pypi(wheel, sha256="0" * 64))
    with pytest.raises(DataError, match=r"tiny_pictures-1\.0.*expected SHA-256 000000000000…, got [0-9a-f]{12};"):
        fetch("tiny")
    assert cached("tiny") is None
    assert list(cache.iterdir()) == []


def test_a_package_that_is_not_there_leaves_nothing(wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knows(monkeypatch, pypi(wheel, name="other-pictures"))
    with pytest.raises(DataError, match=r"package other-pictures==1\.0: expected .*No matching distribution"):
        fetch("tiny")
    assert list(cache.iterdir()) == []


def test_a_debian_package_is_fetched_and_its_files_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_debian_machine(monkeypatch, tmp_path, UNPACK)
    knows(monkeypatch, debian())
    assert (fetch("tiny") / "usr/share/tiny/one.png").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("unpack", "download", "wanted", "message"),
    [
        (UNPACK, "", "f" * 64, "'one.png': expected SHA-256 ffffffffffff"),
        ('mkdir -p "$3"', "", "f" * 64, "'one.png': .*got no such file"),
        (f"{UNPACK}; echo 'unexpected end of archive' >&2; exit 2", "", "", "got unexpected end of archive"),
        (UNPACK, "echo 'Temporary failure resolving' >&2; exit 100", "", "got Temporary failure resolving"),
    ],
)
def test_a_fetch_that_breaks_leaves_nothing(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    unpack: str,
    download: str,
    wanted: str,
    message: str,
) -> None:
    a_debian_machine(monkeypatch, tmp_path, unpack, download)
    knows(monkeypatch, debian(wanted) if wanted else debian())
    with pytest.raises(DataError, match=message):
        fetch("tiny")
    assert list(cache.iterdir()) == []


def test_an_npm_package_is_fetched_checked_and_unpacked(npm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knows(monkeypatch, npm(publish(npm_folder, tarfile.TarInfo("package/one.svg"))))
    assert (fetch("tiny") / "package/one.svg").read_bytes() == CONTENT


def test_another_tarball_than_expected_is_refused(npm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(npm_folder, tarfile.TarInfo("package/one.svg"))
    knows(monkeypatch, npm("0" * 64))
    with pytest.raises(DataError, match="expected SHA-256 000000000000…"):
        fetch("tiny")
    assert cached("tiny") is None


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../outside.svg"),
        tarfile.TarInfo("package/../../outside.svg"),
        tarfile.TarInfo("/outside.svg"),
        link("package/soft", tarfile.SYMTYPE),
        link("package/hard", tarfile.LNKTYPE),
        link("package/pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda member: member.name,
)
def test_a_tarball_that_reaches_outside_is_refused(
    npm_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, member: tarfile.TarInfo
) -> None:
    knows(monkeypatch, npm(publish(npm_folder, member)))
    with pytest.raises(DataError, match=f"expected regular files inside of it alone, got '{member.name}'"):
        fetch("tiny")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("registry", ["", "no address"])
def test_an_npm_registry_without_the_package(
    npm_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, registry: str
) -> None:
    if registry:
        monkeypatch.setenv("npm_config_registry", registry)
    knows(monkeypatch, npm("0" * 64))
    with pytest.raises(DataError, match=r"package @scope/tiny@1\.0\.0: expected .*tiny-1\.0\.0\.tgz to be there"):
        fetch("tiny")
    assert list(cache.iterdir()) == []


def test_npm_asks_the_registry_that_the_user_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY", "npm_config_userconfig", "NPM_CONFIG_USERCONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert npm_registry() == "https://registry.npmjs.org"
    (tmp_path / ".npmrc").write_text("audit=false\n@scope:registry=https://b/\nregistry = https://npm.example/a/\n")
    assert npm_registry() == "https://npm.example/a"
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "https://mirror.example/")
    assert npm_registry() == "https://mirror.example"


def test_without_apt_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    knows(monkeypatch, debian())
    with pytest.raises(DataError, match=r"Debian package tiny: expected apt-get and dpkg-deb, got a system without"):
        fetch("tiny")


def test_whoever_is_first_wins(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process that fetched the same package meanwhile does no harm."""
    a_debian_machine(monkeypatch, tmp_path, f'{UNPACK}; mkdir -p "{cache}/tiny/usr"')
    knows(monkeypatch, debian())
    assert fetch("tiny") == cache / "tiny"
    assert [path.name for path in cache.iterdir()] == ["tiny"]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGE_RAVLM_CACHE", str(tmp_path / "file/cache"))
    a_debian_machine(monkeypatch, tmp_path, UNPACK)
    knows(monkeypatch, debian())
    with pytest.raises(StorageError, match="set EDGE_RAVLM_CACHE to another folder"):
        fetch("tiny")


def test_the_cache_lies_where_the_user_says(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("EDGE_RAVLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/edge-ravlm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/edge-ravlm"

    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)  # a user that no list has, as in containers
    assert cache_folder() == Path("/nonexistent/edge-ravlm")


def test_an_unknown_name_gets_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("package 'tiny': expected one that packages.toml lists")
    assert said.err.count("\n") == 1


def test_the_command_says_where_a_package_lies(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cache / "opencv-doc").mkdir(parents=True)
    assert main(["opencv-doc"]) == 0
    assert capsys.readouterr().out == f"opencv-doc: {cache / 'opencv-doc'}\n"


@pytest.mark.parametrize("name", packages())
def test_every_package_can_be_checked(name: str) -> None:
    package = packages()[name]
    assert package.licence
    pinned = package.registry != "debian"
    hashes = [package.sha256] if pinned else list(package.files.values())
    assert all(len(found) == 64 and int(found, 16) >= 0 for found in hashes)
    assert bool(package.version) == pinned


def test_data_is_fetched_without_the_export_extra() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'matplotlib', 'safetensors', 'efficientnet_lite_pytorch',\n"
        "             'resvg_py'):\n"
        "    sys.modules[name] = None\n"  # importing it fails
        "from edge_ravlm.export.data import corpus, datasets, demo_clip, manifest, packages, scenes, sheet\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
