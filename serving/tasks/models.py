"""Models as ``/v1/models`` shows them."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from serving.service import Card, Service
from serving.tasks.base import Task, block_of
from serving.tasks.chat.schemas import ChatModelBlock
from serving.tasks.classify.schemas import ClassifyModelBlock
from serving.tasks.images.schemas import ImagesModelBlock
from serving.tasks.infer.schemas import TensorsModelBlock
from serving.tasks.videos.schemas import VideoModelBlock


class ModelAnswer(TypedDict):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    vireo: ClassifyModelBlock | ChatModelBlock | ImagesModelBlock | VideoModelBlock | TensorsModelBlock


def shown_model(task: Task, card: Card, service: Service) -> ModelAnswer:
    """Return a model as OpenAI spells it, with a ``vireo`` block."""
    assert task.block is not None
    return {
        "id": card.id,
        "object": "model",
        "created": card.created_s,
        "owned_by": "vireo",
        "vireo": task.block.load()(card, block_of(card, is_ready=service.is_model_ready(card.id))),
    }
