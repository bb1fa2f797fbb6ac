#!/usr/bin/env bash
# Resolve requirements/cpu.in for Python 3.11 and 3.12 on Linux. torch and what only its CUDA builds need are left out:
# torch is installed first, with its own dependencies (docs/decisions/0002).
set -euo pipefail
cd "$(dirname "$0")/.."
command -v uv >/dev/null || { echo "uv is missing: pip install uv" >&2; exit 1; }
resolve() {
  uv pip compile -q --python-version "$1" --python-platform linux --override requirements/overrides.txt \
    --no-annotate --no-header --no-emit-package torch --no-emit-package triton \
    --no-emit-package cuda-bindings --no-emit-package cuda-pathfinder --no-emit-package cuda-toolkit \
    requirements/cpu.in | grep -v '^nvidia-'
}
{
  echo "# Complete set for Linux, Python 3.11 and 3.12; written by \`make lock\`, installed with --no-deps after torch."
  sort -u <(comm -12 <(resolve 3.11 | sort) <(resolve 3.12 | sort)) \
    <(comm -23 <(resolve 3.11 | sort) <(resolve 3.12 | sort) | sed 's/$/ ; python_version < "3.12"/') \
    <(comm -13 <(resolve 3.11 | sort) <(resolve 3.12 | sort) | sed 's/$/ ; python_version >= "3.12"/')
} > requirements/cpu.lock.new
mv requirements/cpu.lock.new requirements/cpu.lock
