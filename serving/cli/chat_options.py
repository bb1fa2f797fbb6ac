"""Options that the commands about chat models share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

UrlOption = Annotated[str, typer.Option(envvar="VIREO_URL", help="Where the system listens.")]
KeyOption = Annotated[str | None, typer.Option("--api-key", "--key", envvar="VIREO_API_KEY", help="API key.")]
ModelOption = Annotated[str | None, typer.Option(help="Model id; the first chat model served when absent.")]
MaxTokensOption = Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer.")]
LatencyOption = Annotated[float | None, typer.Option(help="Latency budget, milliseconds.")]
EnergyOption = Annotated[float | None, typer.Option(help="Energy budget, joules.")]
DEFAULT_URL = "http://127.0.0.1:8000"


class BadUse(Exception):
    """Options that do not go together; the message says which and what to do."""


def request_fields(
    model: str, temperature: float, max_tokens: int | None, latency_ms: float | None, energy_j: float | None
) -> dict[str, Any]:
    """Everything of a request's body but its messages; what is not given is left out."""
    budget = {"latency_ms": latency_ms, "energy_j": energy_j}
    budget = {name: value for name, value in budget.items() if value is not None}
    fields = {"model": model, "temperature": temperature, "max_tokens": max_tokens, "vireo": budget or None}
    return {name: value for name, value in fields.items() if value is not None}
