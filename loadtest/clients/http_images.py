"""``POST /v1/images/generations``: words to pictures, as OpenAI defines it."""

from __future__ import annotations

from typing import Any

from loadtest.clients.base import Payload, Prepared
from loadtest.clients.http_base import HttpClient
from loadtest.clients.outcomes import Answer, WrongAnswer, read_report
from loadtest.records import Outcome


class HttpImagesClient(HttpClient):
    """Waits for its pictures: never takes a job instead."""

    def prepare(self, payload: Payload) -> Prepared:
        """The JSON body. Raises: ValueError: the payload asks for no pictures."""
        drawing = payload.drawing
        if drawing is None:
            raise ValueError("a payload of pictures needs a drawing")
        vireo: dict[str, Any] = {"background": False, **(payload.budget.to_json() if payload.budget else {})}
        if drawing.settings:
            vireo["settings"] = dict(drawing.settings)
        body = {
            "model": payload.model,
            "prompt": drawing.prompt,
            "n": drawing.n,
            "seed": drawing.seed,
            "size": drawing.size,
            "vireo": vireo,
        }
        return self.encode_json(
            "/v1/images/generations", {name: value for name, value in body.items() if value is not None}, payload
        )

    def read_answer(self, body: Any, payload: Payload) -> Answer:
        """As many pictures as were asked for, and the ``vireo`` block. Raises: WrongAnswer."""
        try:
            pictures = [bool(item.get("b64_json") or item.get("url")) for item in body["data"]]
            if sum(pictures) != payload.num_images or not all(pictures):
                raise WrongAnswer(f"{sum(pictures)} pictures of {payload.num_images}")
            return Answer(outcome=Outcome.OK, server=read_report(body.get("vireo") or {}))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise WrongAnswer(f"not an answer with pictures: {type(error).__name__} {error}") from error
