"""Open Inference Protocol v2 over HTTP, JSON form: ``POST /v2/models/{model}/infer``."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote

from loadtest.clients import oip
from loadtest.clients.base import Payload, Prepared
from loadtest.clients.http_base import HttpClient
from loadtest.clients.outcomes import Answer, WrongAnswer


class HttpOipClient(HttpClient):
    """Encoded images in a BYTES tensor, as base64."""

    def prepare(self, payload: Payload) -> Prepared:
        """The JSON body."""
        tensor = {
            "name": oip.INPUT,
            "datatype": "BYTES",
            "shape": [len(payload.images)],
            "data": [base64.b64encode(image).decode("ascii") for image in payload.images],
        }
        body = {
            "parameters": oip.request_parameters(payload),
            "inputs": [tensor],
            "outputs": [{"name": name} for name in oip.OUTPUTS],
        }
        return self.encode_json(f"/v2/models/{quote(payload.model, safe='')}/infer", body, payload)

    def read_answer(self, body: Any, payload: Payload) -> Answer:
        """Labels, exits, errors and the report. Raises: WrongAnswer."""
        try:
            outputs = {output["name"]: output["data"] for output in body["outputs"]}
            parameters = body.get("parameters") or {}
        except (KeyError, TypeError, AttributeError) as error:
            raise WrongAnswer(f"not an inference answer: {type(error).__name__} {error}") from error
        return oip.read_outputs(outputs, parameters, payload)
