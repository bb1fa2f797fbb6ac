"""``POST /v1/videos``: JSON bodies and forms. Both are the same fields under the same rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, get_args, get_origin

from pydantic import BaseModel

from serving.domain import Budget, Surface
from serving.errors import InvalidRequest, UnsupportedField
from serving.front.budget import BudgetBody
from serving.front.front import shown
from serving.front.http.json_body import load_object, validate
from serving.front.http.json_scan import Bounds
from serving.front.http.multipart import Form, FormRules
from serving.limits import IngressLimits
from serving.refusals import FIRST_FRAME
from serving.tasks.videos.rules import VideoRequest, check_video, join_sizes, parse_seconds
from serving.tasks.videos.schemas import FirstFrameBody, VideoBody, VideoExtraBody

_MAX_VALUES = 256
_MAX_CHAR_BYTES = 12
"""Of a character in JSON: two escapes."""
_NO_INPUTS = "clips are made from words, or from a first frame: send that as input_reference"
_NO_SOUND = "clips have no sound"
_OWN_WEIGHTS = "weights are chosen by the operator"
_ONE_GUIDANCE = "send guidance_scale"
_OWN_POINT = "how a clip is sped up is decided by the operating point; send vireo, attention or sampler"
_NO_INTERPOLATION = "every frame is made by the model; send num_frames and fps"

REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "image_reference": _NO_INPUTS,
        "video_reference": _NO_INPUTS,
        "audio_reference": _NO_INPUTS,
        "reference_url": _NO_INPUTS,
        "image": _NO_INPUTS,
        "remix_video_id": _NO_INPUTS,
        "remixed_from_video_id": _NO_INPUTS,
        "characters": _NO_INPUTS,
        "generate_sound": _NO_SOUND,
        "audio": _NO_SOUND,
        "lora": _OWN_WEIGHTS,
        "lora_path": _OWN_WEIGHTS,
        "quality": "send vireo.quality_floor",
        "output_quality": "send vireo.quality_floor",
        "n": "one request makes one clip",
        "guidance_scale_2": _ONE_GUIDANCE,
        "true_cfg_scale": _ONE_GUIDANCE,
        "boundary_ratio": _OWN_WEIGHTS,
        "flow_shift": "the schedule of noise is the checkpoint's",
        "enable_teacache": _OWN_POINT,
        "enable_frame_interpolation": _NO_INTERPOLATION,
        "frame_interpolation_exp": _NO_INTERPOLATION,
        "frame_interpolation_scale": _NO_INTERPOLATION,
        "frame_interpolation_model_path": _NO_INTERPOLATION,
        "response_format": "the answer is a job; its content is at /v1/videos/{id}/content",
        "stream": "watch the job at /v1/videos/{id}/events",
        "webhook": "the server calls nobody; watch the job at /v1/videos/{id}/events",
        "nvext": "send vireo",
    }
)
"""Fields of other servers, and why they are not taken. ``null`` is the same as absent."""
_NO_FILES: Final = "files are not kept here; send the picture itself, or its image_url"
_REFUSED_PARTS: Final = MappingProxyType({**REFUSED, f"{FIRST_FRAME}[file_id]": _NO_FILES})

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}")
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,20}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,3})?")


def _integer(text: str, name: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise InvalidRequest(f"{name} is {shown(text)}; send an integer", param=name)
    return int(text)


def _number(text: str, name: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise InvalidRequest(f"{name} is {shown(text)}; send a number", param=name)
    return float(text)


def _text(text: str, name: str) -> str:
    return text


def _object(text: str, name: str) -> dict[str, Any]:
    return load_object(text.encode("utf-8", "surrogatepass"), max_values=_MAX_VALUES, what=name)


def _reader(annotation: Any) -> Callable[[str, str], Any]:
    """How the text of a form field of that type is read."""
    kinds = [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in get_args(annotation)]
    kinds = kinds or [annotation]
    if any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds):
        return _object
    if str in kinds:
        return _text
    return _integer if int in kinds else _number if float in kinds else _text


_FORM_FIELDS: Final[Mapping[str, Callable[[str, str], Any]]] = MappingProxyType(
    {name: _reader(field.annotation) for name, field in VideoBody.model_fields.items() if name != FIRST_FRAME}
)
_FORM_MEMBERS: Final[Mapping[str, tuple[str, str, Callable[[str, str], Any]]]] = MappingProxyType(
    {
        f"{parent}[{name}]": (parent, name, _reader(field.annotation))
        for parent, body in (("vireo", BudgetBody), ("extra_params", VideoExtraBody))
        for name, field in body.model_fields.items()
        if name != "settings"
    }
)
"""Members of objects as form fields of their own, which is how the official client sends them."""
_FRAME_TEXT: Final = f"{FIRST_FRAME}[image_url]"


def form_rules(limits: IngressLimits) -> FormRules:
    """Parts that a form may have. A part that is refused is read no further than its name."""
    return FormRules(
        text_fields=(*_FORM_FIELDS, *_FORM_MEMBERS, _FRAME_TEXT),
        file_fields=(FIRST_FRAME,),
        max_text_bytes=4 * limits.max_text_chars,
        longer={_FRAME_TEXT: limits.max_image_chars},
        refused=_REFUSED_PARTS,
    )


def document_from_form(form: Form) -> dict[str, Any]:
    """Return the body that says the same in JSON, but for a file. Raises: InvalidRequest."""
    frames = len(form.files) + (_FRAME_TEXT in form.fields)
    if frames > 1:
        raise InvalidRequest(f"the form has {frames} pictures; send one as {FIRST_FRAME}", param=FIRST_FRAME)
    document = {name: _FORM_FIELDS[name](text, name) for name, text in form.fields.items() if name in _FORM_FIELDS}
    whole = frozenset(document)
    for field, text in form.fields.items():
        if field not in _FORM_MEMBERS:
            continue
        parent, name, read = _FORM_MEMBERS[field]
        if parent in whole:
            raise InvalidRequest(f"{parent} and {field} are both there; send one of them", param=parent)
        document.setdefault(parent, {})[name] = read(text, f"{parent}.{name}")
    if _FRAME_TEXT in form.fields:
        document[FIRST_FRAME] = form.fields[_FRAME_TEXT]
    return document


def json_bounds(limits: IngressLimits) -> Bounds:
    """Of a JSON body, whatever it says."""
    text_bytes = _MAX_CHAR_BYTES * limits.max_text_chars
    return Bounds(
        max_values=_MAX_VALUES,
        max_plain_bytes=text_bytes + (1 << 20),
        max_string_bytes=max(text_bytes, limits.max_image_chars),
    )


def request_from_document(
    document: dict[str, Any],
    *,
    surface: Surface,
    request_id: str,
    tenant: str,
    fallback: Budget,
    idempotency_key: str,
    limits: IngressLimits,
) -> VideoRequest:
    """Return the request, whose ``asked`` has one spelling for each meaning. Of a picture it has the text.

    Raises: InvalidRequest, UnknownField, UnsupportedField.
    """
    body = _validated(_offered(document))
    extra = body.extra_params or VideoExtraBody()
    width, height = join_sizes(body.size, body.width, body.height)
    asked = {
        FIRST_FRAME: frame.image_url if isinstance(frame := body.input_reference, FirstFrameBody) else frame,
        "size": None,
        "width": width,
        "height": height,
        "seconds": parse_seconds(body.seconds),
        "sampler": _once(body.sampler, extra.sampler, "sampler"),
        "attention": _once(body.attention, extra.attention, "attention"),
        "output_format": _once(body.output_format, extra.output_format, "output_format") or "mp4",
        "extra_params": None,
        "vireo": None,
    }
    request = VideoRequest(
        request_id=request_id,
        surface=surface,
        tenant=tenant,
        model=body.model or "",
        asked=body.model_copy(update=asked),
        budget=fallback if body.vireo is None else body.vireo.to_budget(fallback),
        idempotency_key=idempotency_key,
    )
    return check_video(request, limits)


def _validated(document: dict[str, Any]) -> VideoBody:
    """Raises: InvalidRequest, UnknownField."""
    try:
        return validate(VideoBody, document)
    except InvalidRequest as error:
        if (error.param or "").startswith(f"{FIRST_FRAME}."):
            sent = shown(document[FIRST_FRAME])
            raise InvalidRequest(
                f"{FIRST_FRAME} is {sent}; send a data: URL of a picture, or an object with such an image_url",
                param=FIRST_FRAME,
            ) from None
        if (error.param or "").startswith("seconds."):  # of several types, and at fault in each of them
            sent = shown(document["seconds"])
            raise InvalidRequest(f"seconds is {sent}; send a number, as in 4 or '4'", param="seconds") from None
        raise


def _offered(document: dict[str, Any]) -> dict[str, Any]:
    """Return the members that are not refused. Raises: UnsupportedField."""
    for name, value in document.items():
        if name in REFUSED and value is not None:
            raise UnsupportedField(f"{name} is not offered: {REFUSED[name]}. Remove it", param=name)
    frame = document.get(FIRST_FRAME)
    if isinstance(frame, dict) and frame.get("file_id") is not None:
        raise UnsupportedField(f"file_id is not offered: {_NO_FILES}", param=f"{FIRST_FRAME}.file_id")
    return {name: value for name, value in document.items() if name not in REFUSED}


def _once(direct: str | None, extra: str | None, name: str) -> str | None:
    if direct is not None and extra is not None and direct != extra:
        raise InvalidRequest(
            f"{name} is {shown(direct)} and extra_params.{name} is {shown(extra)}; send one of them", param=name
        )
    return extra if direct is None else direct
