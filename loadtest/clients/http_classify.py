"""``POST /v1/classify`` with JSON and base64 images."""

from __future__ import annotations

import base64
from typing import Any

from loadtest.clients.base import Payload, Prepared
from loadtest.clients.http_base import HttpClient
from loadtest.clients.outcomes import Answer, read_classify_json


class HttpClassifyClient(HttpClient):
    """Vireo's own HTTP surface."""

    def prepare(self, payload: Payload) -> Prepared:
        """The JSON body with all images in base64."""
        body: dict[str, Any] = {
            "model": payload.model,
            "images": [base64.b64encode(image).decode("ascii") for image in payload.images],
            "top_k": payload.top_k,
        }
        if payload.budget is not None:
            body["vireo"] = payload.budget.to_json()
        return self.encode_json("/v1/classify", body, payload)

    def read_answer(self, body: Any, payload: Payload) -> Answer:
        """Labels, exits and the ``vireo`` block. Raises: WrongAnswer."""
        return read_classify_json(body, len(payload.images))
