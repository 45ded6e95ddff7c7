"""What a bundle hands out is what its manifest lists; whatever is not is refused by name."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge_ravlm
from edge_ravlm.bundle import STARTER, Bundle, pack_bundle, starter_path, write_bundle
from edge_ravlm.errors import BundleAltered, BundleError, EdgeRavlmError, StorageError
from edge_ravlm.manifest import MANIFEST_NAME, FileRecord, Manifest, decode_manifest, encode_manifest

Files = dict[str, bytes]
Lay = Callable[[Path, Mapping[str, bytes]], Path]


@pytest.fixture(scope="module")
def contents(manifest: Manifest) -> Files:
    """A few bytes for every file that the manifest needs, and one it does not."""
    return {path: f"the bytes of {path} ".encode() * 3 for path in (*manifest.required_files(), "notes/more.md")}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest, contents: Files) -> Files:
    """Every file of a valid bundle by its path."""
    folder = tmp_path_factory.mktemp("bundle") / "whole"
    write_bundle(folder, manifest, contents)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(params=["folder", "zip"])
def lay(request: pytest.FixtureRequest) -> Lay:
    """lay(path, files): a folder, and an archive, that hold them."""
    return write_files if request.param == "folder" else write_zip


@pytest.fixture(scope="module")
def model(manifest: Manifest) -> str:
    """Path of a model file."""
    return manifest.flavors["cpu-u8"].image.file


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for properties, which run many times in one test."""
    return tmp_path_factory.mktemp("scratch")


# -- what is right ---------------------------------------------------------------------------------------------------


def test_a_bundle_gives_back_what_was_written(tmp_path: Path, files: Files, lay: Lay) -> None:
    bundle = Bundle.open(lay(tmp_path / "b", files))
    assert {record.path for record in bundle.manifest.files} == files.keys() - {MANIFEST_NAME}
    assert {path: bundle.read(path) for path in files} == files
    assert bundle.verify() == sum(map(len, files.values()))


def test_folder_and_archive_are_the_same_bundle(tmp_path: Path, manifest: Manifest, contents: Files) -> None:
    folder = write_bundle(tmp_path / "b", manifest, contents)
    pack_bundle(folder, tmp_path / "b.zip")
    archive = Bundle.open(tmp_path / "b.zip")
    assert (archive.sha256, archive.manifest) == (folder.sha256, folder.manifest)
    assert archive.verify() == folder.verify()


def test_packing_keeps_a_manifest_that_was_formatted_by_hand(tmp_path: Path, files: Files, lay: Lay) -> None:
    by_hand = {**files, MANIFEST_NAME: msgspec.json.format(files[MANIFEST_NAME], indent=0)}
    bundle = Bundle.open(lay(tmp_path / "b", by_hand))
    pack_bundle(bundle, tmp_path / "packed.zip")
    assert Bundle.open(tmp_path / "packed.zip").sha256 == bundle.sha256


def test_the_starter_is_whole_and_small() -> None:
    bundle = Bundle.open(STARTER)
    assert bundle.verify() < 25_000_000
    assert Bundle.open(starter_path()).sha256 == bundle.sha256


def test_empty_folders_are_no_files(tmp_path: Path, files: Files) -> None:
    folder = tmp_path / "b"
    write_files(folder, files)
    (folder / "empty").mkdir()
    assert Bundle.open(folder).verify()


# -- what is not ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alter", "got"),
    [
        (lambda files, path: files.pop(path), "no such file"),
        (lambda files, path: files.update({path: files[path][:-1]}), "bytes"),
        (lambda files, path: files.update({path: b""}), "0 bytes"),
        (lambda files, path: files.update({path: files[path] + b"\0"}), "bytes"),
    ],
    ids=["missing", "truncated", "emptied", "longer"],
)
def test_a_file_of_another_size_is_refused_by_name(
    tmp_path: Path, files: Files, lay: Lay, model: str, alter: Callable[[Files, str], Any], got: str
) -> None:
    altered = dict(files)
    alter(altered, model)
    with pytest.raises(BundleAltered, match=f"expected {model} of .* got .*{got}"):
        Bundle.open(lay(tmp_path / "b", altered))


@pytest.mark.parametrize("extra", ["zzz.bin", ".hidden", "models/another.onnx"])
def test_an_extra_file_is_refused_by_name(tmp_path: Path, files: Files, lay: Lay, extra: str) -> None:
    with pytest.raises(BundleAltered, match=f"expected no file {extra}"):
        Bundle.open(lay(tmp_path / "b", {**files, extra: b"x"}))


def test_an_altered_file_of_the_same_size_is_refused_by_name_when_read(
    tmp_path: Path, files: Files, lay: Lay, model: str
) -> None:
    bundle = Bundle.open(lay(tmp_path / "b", {**files, model: files[model].swapcase()}))
    for read in (lambda: bundle.read(model), bundle.verify):
        with pytest.raises(BundleAltered, match=f"expected {model} with SHA-256"):
            read()


def test_a_file_that_changes_after_opening_is_refused(tmp_path: Path, files: Files, lay: Lay, model: str) -> None:
    bundle = Bundle.open(lay(tmp_path / "b", files))
    lay(tmp_path / "b", {**files, model: files[model] + b"more"})
    with pytest.raises(BundleAltered, match=model):
        bundle.read(model)


def test_a_bundle_that_goes_away_after_opening_is_said(tmp_path: Path, files: Files, model: str) -> None:
    bundle = Bundle.open(write_files(tmp_path / "b", files))
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(BundleAltered, match=f"expected a readable {model}, got No such file"):
        bundle.read(model)


def test_no_model_is_loaded_from_an_altered_bundle(tmp_path: Path) -> None:
    copy = tmp_path / "starter"
    shutil.copytree(starter_path(), copy)
    file = copy / Bundle.open(copy).manifest.flavors["cpu-u8"].image.file
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleAltered, match=file.name):
        edge_ravlm.load(copy, tmp_path / "m")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_in_any_listed_file_is_refused(scratch: Path, files: Files, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(files.keys() - {MANIFEST_NAME})))
    bit = data.draw(st.integers(0, 8 * len(files[path]) - 1))
    folder = write_files(scratch / "flipped", {**files, path: flipped(files[path], bit)})
    with pytest.raises(BundleAltered, match=path):
        Bundle.open(folder).verify()


@settings(max_examples=60, deadline=None)
@given(bit=st.integers(min_value=0))
def test_a_flipped_bit_in_the_manifest_makes_it_another_bundle(scratch: Path, files: Files, bit: int) -> None:
    manifest = flipped(files[MANIFEST_NAME], bit)
    folder = write_files(scratch / "manifest", {**files, MANIFEST_NAME: manifest})
    original = Bundle.open(write_files(scratch / "original", files))
    try:
        another = Bundle.open(folder).sha256
    except BundleError:
        return
    assert another != original.sha256


@settings(max_examples=150, deadline=None)
@given(bit=st.integers(min_value=0), cut=st.none() | st.integers(min_value=0))
def test_a_damaged_archive_is_refused_or_still_gives_the_right_bytes(
    scratch: Path, files: Files, bit: int, cut: int | None
) -> None:
    archive = scratch / "whole.zip"
    if not archive.exists():
        pack_bundle(Bundle.open(write_files(scratch / "original", files)), archive)
    whole = archive.read_bytes()
    damaged = scratch / "damaged.zip"
    damaged.write_bytes(flipped(whole, bit) if cut is None else whole[: cut % len(whole)])
    try:
        bundle = Bundle.open(damaged)
        read = {path: bundle.read(path) for path in files}
    except BundleError:
        return
    assert cut is None
    assert read == files


# -- what points outside ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../outside", "a\\b", "./a", "a//b", "a/", ".", ""])
def test_paths_outside_the_bundle_are_refused(tmp_path: Path, files: Files, lay: Lay, path: str) -> None:
    listed = decode_manifest(files[MANIFEST_NAME], "test").files
    record = FileRecord(path=path, bytes=1, sha256="0" * 64)
    with pytest.raises(BundleAltered, match="expected paths inside the bundle") as refused:
        Bundle.open(lay(tmp_path / "b", changed(files, files=(*listed, record))))
    assert f"'{path}'" in str(refused.value)


def test_a_file_listed_twice_is_refused(tmp_path: Path, files: Files, lay: Lay) -> None:
    listed = decode_manifest(files[MANIFEST_NAME], "test").files
    with pytest.raises(BundleAltered, match="listed twice"):
        Bundle.open(lay(tmp_path / "b", changed(files, files=(*listed, listed[0]))))


def test_a_file_that_the_manifest_needs_must_be_listed(tmp_path: Path, files: Files, lay: Lay, model: str) -> None:
    listed = tuple(f for f in decode_manifest(files[MANIFEST_NAME], "test").files if f.path != model)
    without = {path: data for path, data in changed(files, files=listed).items() if path != model}
    with pytest.raises(BundleAltered, match=f"expected {model} listed"):
        Bundle.open(lay(tmp_path / "b", without))


def test_links_are_refused_even_to_the_right_bytes(tmp_path: Path, files: Files, model: str) -> None:
    folder = write_files(tmp_path / "b", files)
    outside = shutil.move(folder / model, tmp_path / "outside")
    (folder / model).symlink_to(outside)
    with pytest.raises(BundleAltered, match=f"{model} of .* got a link"):
        Bundle.open(folder)


def test_a_linked_folder_inside_is_refused(tmp_path: Path, files: Files, model: str) -> None:
    folder = write_files(tmp_path / "b", files)
    inside = (folder / model).parent
    outside = shutil.move(inside, tmp_path / "outside")
    inside.symlink_to(outside, target_is_directory=True)
    with pytest.raises(BundleAltered, match=f"expected no file {inside.name}, got a link"):
        Bundle.open(folder)


def test_a_linked_manifest_is_refused(tmp_path: Path, files: Files) -> None:
    folder = write_files(tmp_path / "b", files)
    outside = shutil.move(folder / MANIFEST_NAME, tmp_path / "outside.json")
    (folder / MANIFEST_NAME).symlink_to(outside)
    with pytest.raises(BundleAltered, match=MANIFEST_NAME):
        Bundle.open(folder)


def test_the_bundle_itself_may_be_reached_through_a_link(tmp_path: Path, files: Files, lay: Lay) -> None:
    (tmp_path / "link").symlink_to(lay(tmp_path / "b", files))
    assert Bundle.open(tmp_path / "link").verify()


@pytest.mark.parametrize("swap", [lambda p, t: p.symlink_to(t), lambda p, t: os.mkfifo(p)], ids=["link", "pipe"])
def test_a_file_swapped_for_a_link_or_pipe_after_opening_is_refused_and_never_waited_for(
    tmp_path: Path, files: Files, model: str, swap: Callable[[Path, Path], None]
) -> None:
    folder = write_files(tmp_path / "b", files)
    bundle = Bundle.open(folder)
    outside = shutil.move(folder / model, tmp_path / "outside")
    swap(folder / model, outside)
    with pytest.raises(BundleAltered, match=model):
        bundle.read(model)
    with pytest.raises(BundleAltered, match=f"{model} of .* got a link or special file"):
        Bundle.open(folder)


# -- what is no bundle ------------------------------------------------------------------------------------------------


def test_what_is_no_bundle_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/photo.jpg").write_bytes(b"x")
    (tmp_path / "text.zip").write_text("no zip")
    for name, got in {
        "none": "nothing there",
        "none.zip": "nothing there",
        "empty": f"expected a {MANIFEST_NAME} of at most 4 MB, got none",
        "foreign": f"expected a {MANIFEST_NAME} of at most 4 MB, got none",
        "text.zip": "a file of another kind",
        "n" * 300: "File name too long|nothing there",
        "nul\0": "nothing there",
    }.items():
        with pytest.raises(BundleError, match=got) as refused:
            Bundle.open(tmp_path / name)
        assert str(refused.value).startswith("bundle '")


def test_a_manifest_that_is_too_large_is_not_read(tmp_path: Path, files: Files, lay: Lay) -> None:
    with pytest.raises(BundleError, match="at most 4 MB, got 4000001 bytes"):
        Bundle.open(lay(tmp_path / "b", {**files, MANIFEST_NAME: b" " * 4_000_001}))


@pytest.mark.parametrize("version", [0, 2, 10**30])
def test_another_schema_is_refused_with_its_version(tmp_path: Path, files: Files, lay: Lay, version: int) -> None:
    with pytest.raises(BundleError, match=f"expected manifest schema 1, got schema {version}"):
        Bundle.open(lay(tmp_path / "b", changed(files, schema_version=version)))


# -- odd archives -----------------------------------------------------------------------------------------------------


def test_an_archive_with_the_bundle_in_a_subfolder_is_refused(tmp_path: Path, files: Files) -> None:
    with pytest.raises(BundleError, match=MANIFEST_NAME):
        Bundle.open(write_zip(tmp_path / "b.zip", {f"starter/{path}": data for path, data in files.items()}))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, files: Files, method: int) -> None:
    with pytest.raises(BundleAltered, match="another compression than deflate"):
        Bundle.open(write_zip(tmp_path / "b.zip", files, method))


def test_a_stored_archive_is_read(tmp_path: Path, files: Files) -> None:
    assert Bundle.open(write_zip(tmp_path / "b.zip", files, zipfile.ZIP_STORED)).verify()


def test_an_encrypted_archive_is_refused(tmp_path: Path, files: Files) -> None:
    archive = write_zip(tmp_path / "b.zip", files)
    data = bytearray(archive.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(signature)
        while at >= 0:
            data[at + flags] |= 1
            at = data.find(signature, at + 1)
    archive.write_bytes(data)
    with pytest.raises(BundleAltered, match="encrypted"):
        Bundle.open(archive)


def test_an_archive_with_one_name_twice_is_refused(tmp_path: Path, files: Files, model: str) -> None:
    archive = write_zip(tmp_path / "b.zip", files)
    with zipfile.ZipFile(archive, "a") as out, pytest.warns(UserWarning, match="Duplicate name"):
        out.writestr(model, files[model])
    with pytest.raises(BundleAltered, match="same name twice"):
        Bundle.open(archive)


def test_a_bomb_is_not_unpacked(tmp_path: Path, files: Files, model: str) -> None:
    """An entry that unpacks to 200 MB, with a header that promises the size the manifest lists."""
    archive = tmp_path / "b.zip"
    large = 200_000_000
    write_zip(archive, {**files, model: bytes(large)})
    data = archive.read_bytes()
    archive.write_bytes(data.replace(large.to_bytes(4, "little"), len(files[model]).to_bytes(4, "little")))
    bundle = Bundle.open(archive)
    tracemalloc.start()
    try:
        with pytest.raises(BundleAltered, match=model):
            bundle.read(model)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


# -- writing ----------------------------------------------------------------------------------------------------------


def test_an_empty_folder_is_filled_and_parents_are_made(tmp_path: Path, manifest: Manifest, contents: Files) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a/b/c"):
        assert write_bundle(folder, manifest, contents).verify()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "empty"]


def test_a_folder_with_files_is_left_alone(tmp_path: Path, manifest: Manifest, contents: Files) -> None:
    folder, file = tmp_path / "mine", tmp_path / "file"
    write_files(folder, {"diary.txt": b"dear"})
    file.write_bytes(b"mine")
    for path, got in ((folder, "one with files in it"), (file, "a file")):
        with pytest.raises(BundleError, match=f"expected a folder that is new or empty, got {got}"):
            write_bundle(path, manifest, contents)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["diary.txt", "file", "mine"]


def test_contents_that_make_no_bundle_are_refused_before_anything_is_written(
    tmp_path: Path, manifest: Manifest, contents: Files, model: str
) -> None:
    without = {path: data for path, data in contents.items() if path != model}
    for wrong in (without, {**contents, "../outside": b"x"}, {**contents, MANIFEST_NAME: b"{}"}):
        with pytest.raises(BundleAltered):
            write_bundle(tmp_path / "b", manifest, wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing_half_written(
    tmp_path: Path, manifest: Manifest, contents: Files, model: str
) -> None:
    with (
        full_disk(10_000),
        pytest.raises(StorageError, match="expected a place that can be written, got File too large"),
    ):
        write_bundle(tmp_path / "b", manifest, {**contents, model: bytes(20_000)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
@pytest.mark.parametrize(("where", "call"), [(os, "mkdir"), (os, "fsync"), (Path, "replace")])
def test_a_disk_that_refuses_leaves_nothing_half_written(
    tmp_path: Path,
    manifest: Manifest,
    contents: Files,
    monkeypatch: pytest.MonkeyPatch,
    where: object,
    call: str,
    code: int,
) -> None:
    """chmod does not bind root, so refusals are injected."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(where, call, refuse)
        with pytest.raises(StorageError, match=os.strerror(code)):
            write_bundle(tmp_path / "b", manifest, contents)
    assert list(tmp_path.iterdir()) == []


def test_a_process_killed_while_writing_leaves_no_bundle_under_the_name(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from edge_ravlm.bundle import Bundle, write_bundle
starter = Bundle.open("starter")
calls = []
def die(descriptor):
    calls.append(descriptor)
    if len(calls) == 3:
        os._exit(9)
os.fsync = die
write_bundle(Path(sys.argv[1]), starter.manifest, {f.path: starter.read(f.path) for f in starter.manifest.files})
"""
    root = Path(edge_ravlm.__file__).parents[1]
    command = [sys.executable, "-c", script, str(tmp_path / "b")]
    assert subprocess.run(command, cwd=root, check=False).returncode == 9
    assert not (tmp_path / "b").exists()


# -- packing ----------------------------------------------------------------------------------------------------------


def test_packing_is_reproducible_to_the_byte(tmp_path: Path, files: Files, lay: Lay) -> None:
    bundle = Bundle.open(lay(tmp_path / "b", dict(sorted(files.items(), reverse=True))))
    pack_bundle(bundle, tmp_path / "1.zip")
    pack_bundle(Bundle.open(tmp_path / "1.zip"), tmp_path / "2.zip")
    for path in (tmp_path / "b").rglob("*"):
        os.utime(path, (1, 1))
    pack_bundle(bundle, tmp_path / "3.zip")
    assert len({(tmp_path / f"{n}.zip").read_bytes() for n in (1, 2, 3)}) == 1


def test_an_altered_bundle_is_not_packed_and_the_old_archive_stays(tmp_path: Path, files: Files, model: str) -> None:
    bundle = Bundle.open(write_files(tmp_path / "b", files))
    pack_bundle(bundle, tmp_path / "b.zip")
    old = (tmp_path / "b.zip").read_bytes()
    (tmp_path / "b" / model).write_bytes(files[model].swapcase())
    with pytest.raises(BundleAltered, match=model):
        pack_bundle(bundle, tmp_path / "b.zip")
    assert (tmp_path / "b.zip").read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "b.zip"]


def test_packing_onto_a_full_disk_leaves_the_old_archive(tmp_path: Path, files: Files) -> None:
    bundle = Bundle.open(write_files(tmp_path / "b", files))
    pack_bundle(bundle, tmp_path / "b.zip")
    old = (tmp_path / "b.zip").read_bytes()
    with full_disk(len(old) // 2), pytest.raises(StorageError, match=r"archive .* got File too large"):
        pack_bundle(bundle, tmp_path / "b.zip")
    assert (tmp_path / "b.zip").read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "b.zip"]


def test_packing_where_nothing_can_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "no/such/b.zip", tmp_path / "folder"):
        with pytest.raises(EdgeRavlmError, match=r"archive .* expected a place that can be written"):
            pack_bundle(Bundle.open(STARTER), place)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def changed(original: Files, **changes: Any) -> Files:
    """The files with another manifest."""
    manifest = msgspec.structs.replace(decode_manifest(original[MANIFEST_NAME], "test"), **changes)
    return {**original, MANIFEST_NAME: encode_manifest(manifest)}


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Within it the system refuses to let any file grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def flipped(data: bytes, bit: int) -> bytes:
    """One bit turned over."""
    changed_data = bytearray(data)
    changed_data[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(changed_data)


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """The files in a folder of their own."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_zip(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """The files in an archive."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path
