"""Options that commands which ask a running system share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

UrlOption = Annotated[str, typer.Option(envvar="VIREO_URL", help="Where the system listens.")]
KeyOption = Annotated[str | None, typer.Option("--api-key", "--key", envvar="VIREO_API_KEY", help="API key.")]
ModelOption = Annotated[str | None, typer.Option(help="Model id; the first that is for this when absent.")]
MaxTokensOption = Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer.")]
LatencyOption = Annotated[float | None, typer.Option(help="Latency budget, milliseconds.")]
EnergyOption = Annotated[float | None, typer.Option(help="Energy budget, joules.")]
QualityOption = Annotated[float | None, typer.Option(help="Least quality of the operating point, 0 to 1.")]
PriorityOption = Annotated[str | None, typer.Option(help="low, normal or high.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the answer as it came.")]
DEFAULT_URL = "http://127.0.0.1:8000"


def given(**fields: Any) -> dict[str, Any]:
    """Those that the user has set."""
    return {name: value for name, value in fields.items() if value is not None}
