"""``python -m edge_ravlm`` and the program ``edge-ravlm``: importing this is quick, and then Ctrl-C is heard."""

from __future__ import annotations

import sys


def main() -> None:
    """Run ``sys.argv`` and exit, as ``edge_ravlm.cli.main`` does; 130 if Ctrl-C comes while that is imported."""
    try:
        from edge_ravlm.cli import main as run  # noqa: PLC0415

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
