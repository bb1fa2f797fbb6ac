"""The tasks that are served. A new one is a folder, a row here and a block in ``ModelAnswer``."""

from __future__ import annotations

from typing import Final, Literal

from typing_extensions import TypedDict

from serving.service import Card, Service
from serving.tasks.base import Task, block_of
from serving.tasks.chat import grpc as chat_grpc
from serving.tasks.chat import http as chat_http
from serving.tasks.chat.reply import chat_block
from serving.tasks.chat.schemas import ChatModelBlock
from serving.tasks.classify import grpc as classify_grpc
from serving.tasks.classify import http as classify_http
from serving.tasks.classify.schemas import ClassifyModelBlock
from serving.tasks.infer import grpc as infer_grpc
from serving.tasks.infer import http as infer_http
from serving.tasks.videos import grpc as videos_grpc
from serving.tasks.videos import http as videos_http
from serving.tasks.videos.reply import video_block
from serving.tasks.videos.schemas import VideoModelBlock

TASKS: Final = (
    Task(
        name="classify",
        routes=classify_http.ROUTES,
        rpcs=classify_grpc.RPCS,
        cards=lambda service: service.classifiers.models(),
        block=classify_http.classifier_block,
    ),
    Task(
        name="chat",
        routes=chat_http.ROUTES,
        rpcs=chat_grpc.RPCS,
        cards=lambda service: service.chats.chat_models(),
        block=chat_block,
    ),
    Task(
        name="videos",
        routes=videos_http.ROUTES,
        rpcs=videos_grpc.RPCS,
        cards=lambda service: service.videos.video_models(),
        block=video_block,
    ),
    Task(name="infer", routes=infer_http.ROUTES, rpcs=infer_grpc.RPCS),
)


class ModelAnswer(TypedDict):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    vireo: ClassifyModelBlock | ChatModelBlock | VideoModelBlock


def shown_model(task: Task, card: Card, service: Service) -> ModelAnswer:
    """Return a model as OpenAI spells it, with a ``vireo`` block."""
    return {
        "id": card.id,
        "object": "model",
        "created": card.created_s,
        "owned_by": "vireo",
        "vireo": task.block(card, block_of(card, is_ready=service.is_model_ready(card.id))),
    }
