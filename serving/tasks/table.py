"""The tasks that are served. A new one is a folder and a row here."""

from __future__ import annotations

from typing import Final

from models.contract import LazyRef
from serving.tasks.base import Task

TASKS: Final = (
    Task(
        name="classify",
        about="What is on a picture: classes with their probabilities.",
        examples=("vireo classify examples/digit-7.png",),
    ),
    Task(
        name="chat",
        about="Answers to words and pictures, as OpenAI's chat completions.",
        examples=('vireo chat "Read the text." --image examples/word-en.png', "vireo read examples/word-zh.png"),
        read=LazyRef("serving.tasks.chat.models:read_served"),
    ),
    Task(
        name="responses",
        about="Chat in OpenAI's newer spelling; nothing is kept between requests.",
        has_commands=False,
        has_rpcs=False,
    ),
    Task(
        name="images",
        about="Pictures made of words, or of other pictures.",
        examples=('vireo image "a green 7" -o seven.png',),
        picture_examples=("vireo image --image examples/red-square.png -o changed.png",),
    ),
    Task(
        name="videos",
        about="Clips made of words: durable jobs, their progress and their files.",
        examples=('vireo video "a red circle moves left" -o clip.mp4',),
        picture_examples=("vireo video --image examples/red-square.png -o clip.mp4",),
        both_examples=('vireo video "it moves" --image examples/red-square.png -o clip.mp4',),
        read=LazyRef("serving.tasks.videos.models:read_served"),
    ),
    Task(
        name="infer",
        about="Tensors in and out of any model of rows: Open Inference Protocol v2.",
        has_commands=False,
    ),
)
