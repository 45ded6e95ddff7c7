"""``edge-ravlm``: joins the commands that the two halves bring, and turns every error into one sentence."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points, version
from io import TextIOWrapper
from pathlib import Path

import cyclopts
import msgspec

# OpenCV reads it when it is loaded, as it is below. Without it a picture of 100 kB makes it take gigabytes before
# `frames` sees that it is too large.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "100000000")

from edge_ravlm.bundle import Bundle, pack_bundle
from edge_ravlm.console import complain, say, say_json, table
from edge_ravlm.errors import EdgeRavlmError, UsageError

GROUP = "edge_ravlm.commands"
"""The entry-point group; a half's app is loaded as it is, so importing it must be cheap."""

bundle_app = cyclopts.App(name="bundle", help="Look into a bundle, check it, pack it.")


def build_app() -> cyclopts.App:
    """The whole command line."""
    app = cyclopts.App(
        name="edge-ravlm",
        help="Retrieval-augmented vision-language models on edge devices: show it, name it, ask it.",
        version=version("edge-ravlm"),
        suppress_keyboard_interrupt=False,  # it would exit by itself
        default_parameter=cyclopts.Parameter(negative=()),
    )
    app.command(bundle_app)
    for entry in sorted(entry_points(group=GROUP), key=lambda found: found.name, reverse=True):
        half: cyclopts.App = entry.load()
        # One by one: what cyclopts flattens into an app (name="*") is left out of "Did you mean" and of its list.
        for name in half:
            if not name.startswith("-"):  # --help and --version
                app.command(half[name], name=name)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run and exit: 0 fine, 1 failed, 2 wrong usage."""
    if isinstance(sys.stdout, TextIOWrapper):  # a file name or a terminal that is not UTF-8 must not end a command
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
    try:
        result = build_app()(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        return result if isinstance(result, int) else 0
    except EdgeRavlmError as error:
        complain(f"edge-ravlm: {error}")
        return error.exit_code
    except cyclopts.CycloptsError as error:
        complain(f"edge-ravlm: {_misunderstood(error)}")
        return 2
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        sys.stderr.close()
        return 0
    except SystemExit:  # no command exits by itself: rich, which prints the help, says the same so
        return 0
    except KeyboardInterrupt:
        return 130


def _misunderstood(error: cyclopts.CycloptsError) -> str:
    """What is wrong with a command line, and where its command is explained."""
    said = " ".join(str(error).split())
    if isinstance(error, cyclopts.MissingArgumentError) and error.keyword is None:  # not even named
        said = said.replace(" requires an argument.", " is missing.")
        if error.argument is not None and error.argument.field_info.is_positional_only:
            said += f" The command is `{_usage(error)}`."
    return f"{said} See `{_command(error)} --help`."


def _command(error: cyclopts.CycloptsError) -> str:
    return " ".join(("edge-ravlm", *(error.command_chain or ())))


def _usage(error: cyclopts.CycloptsError) -> str:
    """The command with the arguments that stand in order."""
    known = error.app.assemble_argument_collection() if error.app is not None else ()
    return " ".join((_command(error), *(one.name for one in known if one.field_info.is_positional_only)))


@bundle_app.command
def inspect(bundle: str, /, *, json: bool = False) -> None:
    """Show what a bundle holds: models, spaces, parity, licences.

    Args:
        bundle: a folder, a .zip, or 'starter'.
        json: print one JSON object.
    """
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    if json:
        first = next(iter(manifest.parity.values()), None)
        say_json({"sha256": opened.sha256, "manifest": manifest, "parity": first})
        return
    say(f"{manifest.name} for {manifest.target}, SHA-256 {opened.sha256[:16]}…")
    say(f"image space {manifest.image_space.id[:12]}… of {manifest.image_space.dim} dimensions")
    say(f"text space  {manifest.text_space.id[:12]}… of {manifest.text_space.dim} dimensions")
    table("Files", ("path", "bytes", "SHA-256"), [(f.path, f"{f.bytes:,}", f.sha256[:12]) for f in manifest.files])
    for flavor, parity in manifest.parity.items():
        figures = [(name, _figure(value)) for name, value in msgspec.structs.asdict(parity).items()]
        table(f"Parity of {flavor} with FP32", ("figure", "value"), figures)
    table("Sources", ("name", "licence", "from"), [(s.name, s.licence, s.origin) for s in manifest.sources])


@bundle_app.command
def verify(bundle: str, /, *, json: bool = False) -> None:
    """Read every file of a bundle and check its hash.

    Args:
        bundle: a folder, a .zip, or 'starter'.
        json: print one JSON object.
    """
    opened = Bundle.open(bundle)
    checked = opened.verify()
    if json:
        say_json({"ok": True, "files": len(opened.manifest.files), "bytes": checked, "sha256": opened.sha256})
    else:
        say(f"{bundle}: {len(opened.manifest.files)} files, {checked:,} bytes, all as the manifest lists them.")


@bundle_app.command
def pack(bundle: str, archive: Path, /, *, json: bool = False) -> None:
    """Write a bundle as one .zip.

    Args:
        bundle: a folder, a .zip, or 'starter'.
        archive: the .zip to write.
        json: print one JSON object.
    """
    opened = Bundle.open(bundle)
    if archive.resolve().is_relative_to(Path(bundle).resolve()) and Path(bundle).is_dir():
        raise UsageError(
            f"archive '{archive}'", expected="a place outside the bundle", got="one in it", do="choose another place"
        )
    pack_bundle(opened, archive)
    size = archive.stat().st_size
    if json:
        say_json({"archive": str(archive), "bytes": size, "sha256": opened.sha256})
    else:
        say(f"{archive}: {size:,} bytes")


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "not measured" if value is None else str(value)
