"""Compile what Triton compiles while running, and leave a stand-in for the compiler that hands it out.

Triton (3.8) loads its kernels through one C file of its own, ``driver.c``, which it compiles at its first use with the
compiler that ``CC`` names. Run where there is a compiler: ``python triton_cc.py PREFIX`` writes
``PREFIX/lib/triton/cuda_utils.so`` and ``PREFIX/bin/triton-cc``, for ``CC`` where there is none. Asked for anything else
than that file, the stand-in says so and fails.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

_STAND_IN = """#!/bin/sh
# Written by deploy/images/triton_cc.py. Called as Triton calls a compiler: SOURCE ... -o TARGET ...
source=
target=
previous=
for argument in "$@"; do
  case "$argument" in *.c) [ -n "$source" ] || source="$argument" ;; esac
  [ "$previous" = -o ] && target="$argument"
  previous="$argument"
done
if [ -n "$target" ] && echo "DIGEST  $source" | sha256sum -c --status 2>/dev/null; then
  exec cp "LIBRARY" "$target"
fi
echo "no compiler is in this image, and $source is not the file of Triton's that was compiled into it" >&2
exit 1
"""


def prepare(source: Path, include: Path, prefix: Path, compiler: str = "gcc") -> None:
    """Compile ``source`` as Triton would, and write the stand-in.

    Raises: subprocess.CalledProcessError: it does not compile.
    """
    library = prefix / "lib" / "triton" / "cuda_utils.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{folder}" for folder in (include, source.parent, sysconfig.get_paths()["include"])]
    with tempfile.TemporaryDirectory() as folder:
        # The driver's library comes with the node. All that linking wants of it is its name.
        driver = Path(folder) / "libcuda.so.1"
        subprocess.run([compiler, "-shared", "-Wl,-soname,libcuda.so.1", "-o", driver, "-xc", "/dev/null"], check=True)
        command = [compiler, source, "-O3", "-shared", "-fPIC", "-Wno-psabi", "-o", library, "-Wl,--no-as-needed"]
        subprocess.run([*command, "-l:libcuda.so.1", f"-L{folder}", *includes], check=True)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    stand_in = prefix / "bin" / "triton-cc"
    stand_in.parent.mkdir(parents=True, exist_ok=True)
    stand_in.write_text(_STAND_IN.replace("DIGEST", digest).replace("LIBRARY", str(library)), encoding="utf-8")
    stand_in.chmod(0o755)


def main() -> None:
    """For the Triton that is installed."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        sys.exit("triton is not installed")
    folder = Path(spec.origin).parent / "backends" / "nvidia"
    prepare(folder / "driver.c", folder / "include", Path(sys.argv[1]))


if __name__ == "__main__":
    main()
