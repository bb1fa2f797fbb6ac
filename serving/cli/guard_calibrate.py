"""``vireo guard calibrate``: what benign answers of a model are like, from recorded requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.cli.model_commands import ModelOrFolder
from serving.client.options import LicenceOption, QuietOption
from serving.client.told import Failed, phases, progress_bar, show_table, told_plainly

if TYPE_CHECKING:
    from collections.abc import Callable

    from schedulers.guard.calibration import GuardCalibration
    from serving.config import ResolvedModel
    from serving.guard.fit import Benign

EXAMPLES = """\b
Examples:
  vireo guard calibrate ID --requests recorded.jsonl
  vireo guard calibrate NAME=FOLDER --requests recorded.jsonl --device cuda
"""


def calibrate(
    model: ModelOrFolder,
    requests: Annotated[
        Path,
        typer.Option(
            metavar="FILE.jsonl",
            help="Chats that are known to be benign: bodies of /v1/chat/completions, one a line, pictures inside.",
            exists=True,
            dir_okay=False,
        ),
    ],
    most: Annotated[int | None, typer.Option("--most", min=1, help="Lines to read; default all.")] = None,
    device: Annotated[str, typer.Option(help="Where to run: cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where guard.json goes; default: beside the weights.")
    ] = None,
    accept_licence: LicenceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Learn what benign answers of a chat model are like, and write guard.json.

    The model answers each request here, in plain torch, whatever engine serves it. They should be a fair sample of
    benign traffic: what is common there will not be called strange, and what is missing will. Long answers that
    people do ask for belong in it. 2,000 requests or more are a good number; fewer than 750 are refused.

    No text and no picture is kept, only numbers; the hashed words of the text model cannot be read back.
    """
    import asyncio

    from serving.guard.fit import MIN_ANSWERS

    with told_plainly(), progress_bar(quiet=quiet) as progress:
        resolved = _resolved(model, device, threads, accept_licence)
        answers = asyncio.run(_answers(resolved, requests, most, phases(progress)))
        calibration, path = _written(resolved, answers, requests, out)
    _show(calibration)
    typer.echo(f"written to {path}")
    if len(answers) < MIN_ANSWERS:
        typer.echo(f"from {len(answers)} answers, which is few: {MIN_ANSWERS} or more find rarer things", err=True)


def _resolved(model: str, device: str, threads: int, accept_licence: bool) -> ResolvedModel[Any]:
    """Raises: ConfigError, ValueError: no such chat model."""
    from pydantic import ValidationError

    from serving.config import ModelSettings, resolve_model
    from serving.config.models import named_model

    fields = {**named_model(model), "options": {"engine": "torch", "max_num_seqs": 1}}
    fields |= {"device": device, "threads": threads, "accept_licence": accept_licence}
    try:
        settings = ModelSettings.model_validate(fields)
    except ValidationError as error:
        raise ValueError(f"{error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}") from None
    resolved: ResolvedModel[Any] = resolve_model(settings)
    if "chat" not in resolved.tasks:
        raise ValueError(f"{model} does not chat; the guard compares answers of chats")
    return resolved


async def _answers(
    model: ResolvedModel[Any], path: Path, most: int | None, tell: Callable[[str, int, int], None]
) -> list[Benign]:
    """Raises: Failed: a body that the server would refuse; the message names its line."""
    from models.registry import family_for
    from serving.errors import ServingError
    from serving.replica.chat.setup import build_engine, context_of, read_prompts
    from serving.tasks.chat.recorded import answered, bodies, read_body

    family = family_for(model.family, model.variant)
    prompts, context = read_prompts(model), context_of(model)
    if family.prepare is None:
        raise ValueError(f"{model.id} reads no pictures; there is nothing to guard")
    process = family.prepare.load()(model.variant)
    listed = list(bodies(path, most))
    engine, answers = build_engine(model), []
    await engine.start()
    try:
        for done, (line, body) in enumerate(listed, 1):
            try:
                recorded = await read_body(
                    body, prompts, process, most_tokens=model.options.max_output_tokens, context=context
                )
                answers.append(await answered(engine, recorded))
            except ServingError as error:
                raise Failed(f"{path}, line {line}: {error}") from None
            tell("answers", done, len(listed))
    finally:
        await engine.stop()
    return answers


def _written(
    model: ResolvedModel[Any], answers: list[Benign], requests: Path, out: Path | None
) -> tuple[GuardCalibration, Path]:
    """Raises: ValueError: too few answers."""
    import hashlib

    from models.identity import checkpoint_sha256
    from serving.guard.fit import fit
    from serving.guard.written import special_ids, write_calibration

    folder = model.variant.weights
    assert folder is not None, "its engine has started"
    calibration = fit(
        answers, model=model.id, checkpoint_sha256=checkpoint_sha256(folder), special_ids=special_ids(folder)
    )
    made = {
        "by": "vireo guard calibrate",
        "requests": requests.name,
        "requests_sha256": hashlib.sha256(requests.read_bytes()).hexdigest(),
        "engine": "torch",
    }
    return calibration, write_calibration(calibration, out or folder, made)


def _show(calibration: GuardCalibration) -> None:
    import math

    from schedulers.guard.conformal import LEVEL

    rows = []
    for name, group in calibration.groups.items():
        residual = group.residual_at(LEVEL)
        factor = "none" if math.isinf(residual) else f"{math.exp(residual):.1f} times"
        rows.append((name, str(group.num), str(group.p95_tokens), factor, f"{group.censored:.1%}"))
    show_table(("answers like", "number", "95% end by", "bound over predicted", "cut off"), rows)
