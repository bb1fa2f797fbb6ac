"""What Triton tries for a kernel. Imported only where Triton is."""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-untyped-def"

from __future__ import annotations

from typing import Any


def configs() -> list[Any]:
    """Warps and pipeline stages; one of each under the interpreter, which cannot measure."""
    import triton

    sizes = [(4, 2), (4, 3), (8, 1), (8, 2), (8, 3), (8, 4)]  # what does not fit on the chip is passed over
    tried = sizes[:1] if triton.knobs.runtime.interpret else sizes
    return [triton.Config({}, num_warps=warps, num_stages=stages) for warps, stages in tried]
