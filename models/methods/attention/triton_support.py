"""Whether Triton can be imported, and what its kernels here take. It comes with GPU builds of torch.

Legend: D head dim.
"""

from __future__ import annotations

from importlib.util import find_spec

SMALLEST_BLOCK, LARGEST_BLOCK = 16, 128  # of a matrix product; registers of one thread block


def has_triton() -> bool:
    """Whether it is installed; says nothing about a device."""
    return find_spec("triton") is not None


def supports(block_tokens: int) -> bool:
    """Whether the kernels take blocks of this size: a power of two, 16 to 128."""
    return SMALLEST_BLOCK <= block_tokens <= LARGEST_BLOCK and block_tokens & (block_tokens - 1) == 0


def require(block_tokens: int) -> None:
    """Raises: ValueError: no Triton, or blocks that its kernels do not take."""
    if not has_triton():
        raise ValueError('backend "triton" needs the package triton, which is not installed; use backend "cpu"')
    if not supports(block_tokens):
        raise ValueError(
            f"block_tokens is {block_tokens}; the Triton kernels take a power of two from {SMALLEST_BLOCK} to "
            f'{LARGEST_BLOCK}; use one, or backend "cpu"'
        )


def head_parts(dim: int) -> tuple[int, int]:
    """D as two powers of two that are computed apart: 96 = 64 + 32 wastes nothing, 128 would waste a quarter.

    The second is 0 where the first is enough; each is at least 16, what is beyond D is zeros.
    """
    first = max(SMALLEST_BLOCK, 1 << (dim.bit_length() - 1))
    rest = dim - first
    return first, 0 if rest <= 0 else max(SMALLEST_BLOCK, 1 << (rest - 1).bit_length())
