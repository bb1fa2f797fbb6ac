"""What ranks exchange, on explicit groups, counted.

Every function is the identity for a group of one rank. Lengths may differ from rank to rank. There is no backward:
tensors that want a gradient are refused rather than silently cut off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from models.parallel.groups import Group

Pending = Callable[[], Tensor]


def all_to_all(pieces: Tensor, send: Sequence[int], receive: Sequence[int], group: Group) -> Pending:
    """Start sending rows ``send[r]`` of ``pieces`` to rank r; call the result for the rows that arrived, by rank.

    (sum(send), ...) -> (sum(receive), ...)
    """
    if group.size == 1:
        return lambda: pieces
    _refuse_gradient(pieces)
    pieces = pieces.contiguous()
    arrived = pieces.new_empty((sum(receive), *pieces.shape[1:]))
    work = dist.all_to_all_single(arrived, pieces, list(receive), list(send), group=group.process_group, async_op=True)
    sent_bytes = (len(pieces) - send[group.rank]) * _row_bytes(pieces)

    def finish() -> Tensor:
        _wait("all_to_all", [work], sent_bytes, group)
        return arrived

    return finish


def all_gather(rows: Tensor, lengths: Sequence[int], group: Group) -> Tensor:
    """Rows of all ranks, in order of rank; ``lengths[r]`` of them come from rank r.

    (lengths[rank], ...) -> (sum(lengths), ...). Shorter pieces travel padded to the longest.
    """
    longest = max(lengths)
    if group.size == 1 or longest == 0:
        return rows
    _refuse_gradient(rows)
    mine = rows.new_zeros((longest, *rows.shape[1:]))
    mine[: len(rows)] = rows
    arrived = rows.new_empty((group.size * longest, *rows.shape[1:]))
    pieces = list(torch.split(arrived, longest))
    work = dist.all_gather(pieces, mine, group=group.process_group, async_op=True)
    _wait("all_gather", [work], (group.size - 1) * longest * _row_bytes(mine), group)
    if len(set(lengths)) == 1:
        return arrived
    return torch.cat([piece[:length] for piece, length in zip(pieces, lengths, strict=True)])


def gather_lengths(length: int, group: Group, device: torch.device) -> tuple[int, ...]:
    """``length`` of every rank. Costs a round trip, and on a GPU a synchronisation."""
    if group.size == 1:
        return (length,)
    mine = torch.tensor([length], device=device)
    return tuple(all_gather(mine, [1] * group.size, group).tolist())


def rotate(block: Tensor, incoming: Tensor, group: Group) -> Pending:
    """Start passing ``block`` to the next rank of the ring and filling ``incoming`` from the one before.

    Neither may be written to until the result is called; it returns ``incoming``.
    """
    if group.size == 1:
        raise ValueError("a ring of one rank has nobody to pass blocks to")
    _refuse_gradient(block)
    # Even ranks send first: a backend that runs one group's point-to-point calls in order cannot lock up.
    send = dist.P2POp(dist.isend, block, group.neighbour(1), group.process_group)
    receive = dist.P2POp(dist.irecv, incoming, group.neighbour(-1), group.process_group)
    works = dist.batch_isend_irecv([send, receive] if group.rank % 2 == 0 else [receive, send])

    def finish() -> Tensor:
        _wait("ring", works, block.numel() * block.element_size(), group)
        return incoming

    return finish


def exchange(sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]], group: Group) -> None:
    """Send tensors to ranks of the group, and fill others from them; between two ranks, in order on both sides."""
    works = [dist.isend(one, group.ranks[rank], group.process_group) for one, rank in sends]
    works += [dist.irecv(one, group.ranks[rank], group.process_group) for one, rank in receives]
    _wait("exchange", works, sum(one.nbytes for one, _ in sends), group)


def _wait(collective: str, works: Sequence[dist.Work | None], sent_bytes: int, group: Group) -> None:
    started_s = time.perf_counter()
    for work in works:
        if work is not None:
            work.wait()
    group.meter.record(collective, sent_bytes, time.perf_counter() - started_s)


def _row_bytes(tensor: Tensor) -> int:
    return tensor.element_size() * tensor[0].numel() if len(tensor) else 0


def _refuse_gradient(tensor: Tensor) -> None:
    if tensor.requires_grad:
        raise ValueError("sequence parallelism has no backward; run the model under torch.inference_mode()")
