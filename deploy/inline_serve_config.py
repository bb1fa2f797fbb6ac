"""Copy the Serve config into the RayService manifest, where KubeRay wants it as a string.

Run: ``python deploy/inline_serve_config.py`` writes, ``--check`` exits 1 when the copy is stale.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

DEPLOY_DIR = Path(__file__).resolve().parent
SOURCE = Path("serve-config.yaml")
TARGET = Path("base/rayservice.yaml")
_BLOCK = re.compile(r"^  serveConfigV2: \|\n(?:    .*\n|\n)*", re.MULTILINE)


def inlined(manifest: str, serve_config: str) -> str:
    """Return ``manifest`` with its ``serveConfigV2`` block replaced by ``serve_config``, comments left out.

    Raises: ValueError: when the manifest has not exactly one block of that form.
    """
    lines = [line for line in serve_config.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    block = "  serveConfigV2: |\n" + "".join(f"    {line}\n" for line in lines)
    text, num_blocks = _BLOCK.subn(lambda _: block, manifest)
    if num_blocks != 1:
        raise ValueError(f"found {num_blocks} serveConfigV2 blocks, wanted 1: indent it by two spaces and use '|'")
    return text


def main(argv: list[str] | None = None, deploy_dir: Path = DEPLOY_DIR) -> int:
    """Write the manifest, or only compare with ``--check``. Returns the exit status."""
    parser = argparse.ArgumentParser(description=f"Copy deploy/{SOURCE} into deploy/{TARGET}.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the copy is stale")
    check = parser.parse_args(argv).check
    before = (deploy_dir / TARGET).read_text(encoding="utf-8")
    after = inlined(before, (deploy_dir / SOURCE).read_text(encoding="utf-8"))
    if check and before != after:
        print(f"{TARGET} is stale against {SOURCE}: run python deploy/inline_serve_config.py", file=sys.stderr)
        return 1
    if before != after:
        (deploy_dir / TARGET).write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
