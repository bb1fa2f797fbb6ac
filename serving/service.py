"""What the ingress needs from the rest of the system: one protocol, spoken in domain types.

The real implementation is ``serving.classify.ClassifyService``; ``tests/support`` has a fake.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from serving.domain import ClassifyReply, ClassifyRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What clients may know of a served model."""

    id: str
    family: str
    created_s: int
    """Unix time at which the checkpoint was made."""
    input_size: int
    """Side of the square pixel input."""
    num_classes: int
    num_exits: int
    labels: tuple[str, ...]
    checkpoint_sha256: str
    operating_points: tuple[str, ...]


class Service(Protocol):
    """Everything behind the front door."""

    def models(self) -> tuple[ModelCard, ...]:
        """The models served here."""
        ...

    def is_ready(self) -> bool:
        """Whether a request sent now can be answered."""
        ...

    async def classify(self, request: ClassifyRequest) -> ClassifyReply:
        """Answer every image of the request, each with a classification or its own error.

        Raises: ServingError: the request as a whole cannot be answered. Cancelling the call frees what it holds.
        """
        ...
