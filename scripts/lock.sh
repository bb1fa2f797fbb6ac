#!/usr/bin/env bash
# Resolves requirements/cpu.in, and pyproject.toml's extra gpu, for Linux into lock files with the SHA-256 of every file of every version.
# torch is no part of the CPU lock: it is installed first, with its own dependencies (docs/decisions/0002).
#
#   scripts/lock.sh            resolve anew
#   scripts/lock.sh --hashes   keep the versions that cpu.lock names; only look up the hashes, of lines added by hand too
set -euo pipefail
cd "$(dirname "$0")/.."
command -v uv >/dev/null || { echo "uv is missing: pip install uv" >&2; exit 1; }
resolve() {
  uv pip compile -q --python-version "$1" --python-platform linux --override requirements/overrides.txt \
    --no-annotate --no-header --no-emit-package torch --no-emit-package triton \
    --no-emit-package cuda-bindings --no-emit-package cuda-pathfinder --no-emit-package cuda-toolkit \
    requirements/cpu.in | grep -v '^nvidia-'
}
versions() {
  if [ "${1:-}" = --hashes ]; then
    grep -E '^[a-z0-9]' requirements/cpu.lock | sed 's/ *\\$//'
    return
  fi
  sort -u <(comm -12 <(resolve 3.11 | sort) <(resolve 3.12 | sort)) \
    <(comm -23 <(resolve 3.11 | sort) <(resolve 3.12 | sort) | sed 's/$/ ; python_version < "3.12"/') \
    <(comm -13 <(resolve 3.11 | sort) <(resolve 3.12 | sort) | sed 's/$/ ; python_version >= "3.12"/')
}
new=$(mktemp)
trap 'rm -f "$new"*' EXIT
{
  echo "# Complete set for Linux, Python 3.11 and 3.12; written by \`make lock\`, installed with --no-deps after torch."
  uv pip compile -q --universal --no-deps --python-version 3.11 --generate-hashes --no-annotate --no-header \
    <(versions "$@")
} > "$new"
[ "${1:-}" = --hashes ] || {
  echo "# Complete set for Linux x86_64, Python 3.12, as in the GPU image; written by \`make lock\`, installed with --no-deps."
  uv pip compile -q --python-version 3.12 --python-platform x86_64-manylinux_2_35 --generate-hashes --no-annotate \
    --no-header --extra gpu pyproject.toml
} > "$new.gpu"
{
  echo "# Triton beside a CPU torch, which brings none: the tests run its kernels in its interpreter. Written by \`make lock\`."
  uv pip compile -q --universal --no-deps --python-version 3.11 --generate-hashes --no-annotate --no-header \
    <(grep '^triton==' requirements/triton.lock | sed 's/ *\\$//')
} > "$new.triton"
cp "$new" requirements/cpu.lock
cp "$new.triton" requirements/triton.lock
[ "${1:-}" = --hashes ] || cp "$new.gpu" requirements/gpu.lock
