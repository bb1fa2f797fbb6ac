"""``vireo read IMAGE...``: what is written in images, or where something is in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.client.exits import Exit
from serving.client.options import (
    DEFAULT_URL,
    EnergyOption,
    KeyOption,
    LatencyOption,
    MaxTokensOption,
    ModelOption,
    SetOption,
    UrlOption,
    given,
)
from serving.client.told import Failed, asked_plainly, plain, whole

if TYPE_CHECKING:
    from serving.client.pictures import BoxesIn
    from serving.tasks.chat.client import Answer


def read(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="JPEG, PNG or WebP files, or https URLs.")],
    page: Annotated[bool, typer.Option("--page", help="A whole page: its lines are kept.")] = False,
    where: Annotated[str | None, typer.Option(help='What to find, as in "the red square": prints its box.')] = None,
    model: ModelOption = None,
    max_tokens: MaxTokensOption = None,
    latency_ms: LatencyOption = None,
    energy_j: EnergyOption = None,
    settings: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per image.")] = False,
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
) -> None:
    """Read the text in images, or find something in them.

    What is found is told as left, top, right, bottom in pixels. An image that has no answer does not stop the others.
    """
    from serving.client.pictures import boxes_of
    from serving.tasks.chat.client import ChatClient

    with asked_plainly():
        job = _job(page, where)
        with ChatClient(url, api_key) as client:
            chosen, values = client.choose("chat", model, settings)
            boxes_in = boxes_of(client, chosen) if job.finds_boxes else None
            fields = given(
                model=chosen,
                temperature=0.0,
                max_tokens=max_tokens,
                vireo=given(latency_ms=latency_ms, energy_j=energy_j, settings=values or None) or None,
            )
            printer = _Printer(boxes_in, as_json=as_json, is_page=page, is_alone=len(images) == 1)
            ask = lambda body: client.complete({**fields, **body})[1]  # noqa: E731
            codes = [_read_one(name, job, ask, printer) for name in images]
    failures = [code for code in codes if code]
    raise typer.Exit(Exit.PARTLY if 0 < len(failures) < len(codes) else min(failures, default=Exit.OK))


@dataclass(frozen=True)
class _Job:
    question: str
    finds_boxes: bool = False


def _job(page: bool, where: str | None) -> _Job:
    if where is None:
        return _Job("Read the whole page." if page else "Read the text.")
    if page:
        raise Failed("--page reads and --where finds; give one of them")
    what = where.strip().rstrip("?.").strip()
    if not what:
        raise Failed("--where is empty; say what to find")
    return _Job(f"Where is {what}?", finds_boxes=True)


def _read_one(name: str, job: _Job, ask: Callable[[dict[str, Any]], Answer], printer: _Printer) -> int:
    """Read one image and print what came of it. Returns its exit code.

    Raises: Failed: nobody answers at that address; there is no point in going on.
    """
    from serving.client.pictures import BadPicture, load_picture

    try:
        picture = load_picture(name)
        size = picture.open().size if job.finds_boxes else None
        content = [picture.part(), {"type": "text", "text": whole(job.question)}]
        answer = ask({"messages": [{"role": "user", "content": content}]})
    except BadPicture as error:
        printer.failed(name, error.line, {"code": "invalid_image", "message": str(error)})
        return Exit.USAGE
    except Failed as error:
        if error.document is None and not error.is_servers_fault:
            raise
        document = error.document["error"] if error.document else {"code": "no_answer", "message": error.line}
        printer.failed(name, error.line, document)
        return error.exit_code
    printer.note(name, answer)
    if size is None:
        printer.text(name, answer)
        return 0
    return 0 if printer.boxes(name, answer, size) else Exit.FAILED


@dataclass(frozen=True)
class _Printer:
    """One line for each image, unless there is but one, or pages are read."""

    boxes_in: BoxesIn | None
    as_json: bool
    is_page: bool
    is_alone: bool

    def text(self, name: str, answer: Answer) -> None:
        if self.as_json:
            self._object(name, {"text": answer.text, **_facts(answer)})
        elif self.is_alone:
            typer.echo(plain(answer.text))
        elif self.is_page:
            typer.echo(f"== {plain(name)} ==\n{plain(answer.text)}")
        else:
            self._line(name, " ".join(answer.text.split()))

    def boxes(self, name: str, answer: Answer, size: tuple[int, int]) -> bool:
        """Print boxes in pixels. Returns whether there are any."""
        from serving.client.pictures import in_pixels

        assert self.boxes_in is not None, "places were asked for"
        boxes = in_pixels(self.boxes_in(answer.text), size)
        if self.as_json:
            shape = {"width": size[0], "height": size[1]}
            self._object(name, {"boxes": boxes, **shape, "text": answer.text, **_facts(answer)})
        elif not boxes:
            self._problem(name, f"the answer holds no box: {answer.text}")
        elif self.is_alone:
            typer.echo("\n".join(" ".join(map(str, box)) for box in boxes))
        else:
            self._line(name, "; ".join(" ".join(map(str, box)) for box in boxes))
        return bool(boxes)

    def note(self, name: str, answer: Answer) -> None:
        """Say that the guard ended an answer, if it did."""
        from serving.tasks.chat.client import ended_by_guard

        if not self.as_json and (why := ended_by_guard(answer)):
            self._problem(name, why)

    def failed(self, name: str, line: str, error: Any) -> None:
        """Print why an image has no answer."""
        if self.as_json:
            self._object(name, {"error": error})
        else:
            self._problem(name, line)

    def _object(self, name: str, fields: dict[str, Any]) -> None:
        typer.echo(json.dumps({"file": name, **fields}))

    def _line(self, name: str, text: str) -> None:
        typer.echo(plain(f"{name}: {text}").replace("\n", " "))

    def _problem(self, name: str, line: str) -> None:
        line = line if line.startswith(name) else f"{name}: {line}"
        typer.echo("vireo: " + plain(line).replace("\n", " "), err=True)


def _facts(answer: Answer) -> dict[str, Any]:
    return {"finish_reason": answer.finish_reason, "usage": answer.usage, "vireo": answer.report}
