"""``POST /v1/videos/sync``: words, a first frame or both to a clip, which is waited for."""

from __future__ import annotations

import base64
from typing import Any

from loadtest.clients.base import Payload, Prepared
from loadtest.clients.http11 import HttpResponse
from loadtest.clients.http_base import HttpClient
from loadtest.clients.outcomes import Answer, WrongAnswer
from loadtest.records import Outcome


class HttpVideosClient(HttpClient):
    """The answer is the file: what the server reports of its making is not in it."""

    def prepare(self, payload: Payload) -> Prepared:
        """The JSON body. Raises: ValueError: the payload asks for no clip."""
        filming = payload.filming
        if filming is None:
            raise ValueError("a payload of videos needs a filming")
        vireo: dict[str, Any] = payload.budget.to_json() if payload.budget else {}
        if filming.settings:
            vireo["settings"] = dict(filming.settings)
        body = {
            "model": payload.model,
            "prompt": filming.prompt,
            "seed": filming.seed,
            "size": filming.size,
            "num_frames": filming.num_frames,
            "input_reference": _data_url(payload.images[0]) if payload.images else None,
            "vireo": vireo or None,
        }
        return self.encode_json(
            "/v1/videos/sync", {name: value for name, value in body.items() if value is not None}, payload
        )

    def read_response(self, response: HttpResponse, payload: Payload) -> Answer:
        """A file. Raises: WrongAnswer."""
        media_type = response.headers.get("content-type", "")
        if not response.body or not media_type.startswith(("video/", "image/gif")):
            raise WrongAnswer(f"{len(response.body)} bytes of {media_type or 'no type'} are no clip")
        return Answer(outcome=Outcome.OK)

    def read_answer(self, body: Any, payload: Payload) -> Answer:
        """There is no JSON in a success. Raises: WrongAnswer."""
        raise WrongAnswer("JSON is no clip")


def _data_url(image: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(image).decode()}"
