"""The tasks that are served. A new one is a folder and a row here."""

from __future__ import annotations

from typing import Final

from models.contract import LazyRef
from serving.tasks.base import Task

TASKS: Final = (
    Task(
        name="classify",
        routes=LazyRef("serving.tasks.classify.http:ROUTES"),
        rpcs=LazyRef("serving.tasks.classify.grpc:RPCS"),
        verbs=LazyRef("serving.tasks.classify.cli:register"),
        checks=LazyRef("serving.tasks.classify.checks:CHECKS"),
        examples=("vireo classify examples/digit-7.png",),
        read=LazyRef("serving.operating_points:points_of"),
    ),
    Task(
        name="chat",
        routes=LazyRef("serving.tasks.chat.http:ROUTES"),
        rpcs=LazyRef("serving.tasks.chat.grpc:RPCS"),
        verbs=LazyRef("serving.tasks.chat.cli:register"),
        checks=LazyRef("serving.tasks.chat.checks:CHECKS"),
        examples=('vireo chat "Read the text." --image examples/word-en.png', "vireo read examples/word-zh.png"),
        read=LazyRef("serving.tasks.chat.models:read_served"),
    ),
    Task(
        name="images",
        routes=LazyRef("serving.tasks.images.http:ROUTES"),
        rpcs=LazyRef("serving.tasks.images.grpc:RPCS"),
        verbs=LazyRef("serving.tasks.images.cli:register"),
        checks=LazyRef("serving.tasks.images.checks:CHECKS"),
        read=LazyRef("serving.operating_points:points_of"),
    ),
    Task(
        name="videos",
        routes=LazyRef("serving.tasks.videos.http:ROUTES"),
        rpcs=LazyRef("serving.tasks.videos.grpc:RPCS"),
        verbs=LazyRef("serving.tasks.videos.cli:register"),
        checks=LazyRef("serving.tasks.videos.checks:CHECKS"),
        examples=('vireo video "a red circle moves left" -o clip.mp4',),
        read=LazyRef("serving.tasks.videos.models:read_served"),
    ),
    Task(
        name="infer",
        routes=LazyRef("serving.tasks.infer.http:ROUTES"),
        rpcs=LazyRef("serving.tasks.infer.grpc:RPCS"),
        read=LazyRef("serving.operating_points:points_of"),
    ),
)
