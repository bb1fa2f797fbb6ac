"""Generate the protobuf and gRPC stubs of ``proto/`` beside their sources; ``--check`` only compares.

Source of truth: the ``.proto`` files. ``make proto`` writes, ``make check`` compares.
"""

from __future__ import annotations

import argparse
import importlib.resources
import os
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent / "proto"
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def generate(out: Path) -> None:
    """Write the stubs of every ``.proto`` below ``proto/`` into ``out``."""
    # protoc looks its plugins up on the PATH, which need not have this environment's folder in it.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    include = importlib.resources.files("grpc_tools") / "_proto"
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))
    args = ["protoc", f"-I{ROOT}", f"-I{include}", f"--python_out={out}", f"--grpc_python_out={out}"]
    args += [f"--mypy_out=quiet:{out}", f"--mypy_grpc_out=quiet:{out}"]
    if protoc.main(args + sources) != 0:
        raise SystemExit("protoc failed")


def stale(fresh: Path) -> list[str]:
    """Names of the committed stubs that differ from freshly generated ones."""
    names = [path.relative_to(fresh) for path in fresh.rglob("*") if path.name.endswith(SUFFIXES)]
    return [
        str(name)
        for name in sorted(names)
        if not (ROOT / name).exists() or (ROOT / name).read_bytes() != (fresh / name).read_bytes()
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing, exit 1 when stale")
    if not parser.parse_args().check:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        if names := stale(Path(folder)):
            sys.exit(f"stale stubs, run `make proto`: {', '.join(names)}")
    print("stubs are in sync")


if __name__ == "__main__":
    main()
