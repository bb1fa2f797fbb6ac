"""What a chat request may hold, whichever surface it came by: counted while it is read, before anything is decoded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from serving.domain import ImagePart
from serving.errors import (
    FeatureNotAllowed,
    ImageTooLarge,
    ImageUrlRefused,
    InvalidImage,
    InvalidRequest,
    PromptTooLong,
    TooManyImages,
)
from serving.front.auth import LogprobRights
from serving.front.front import check_integer, check_number, check_unicode, shown
from serving.front.images import DataUrl, decode_url, is_data_url, parse_data_url
from serving.limits import IngressLimits
from serving.tasks.chat.domain import Message, Part, Role, Sampling, TextPart
from serving.tasks.chat.schema_bounds import SchemaBounds

MAX_TEMPERATURE = 2.0
MAX_TOP_LOGPROBS = 20
MAX_BIAS = 100.0
MAX_TOKENS = (1 << 31) - 1
MAX_SEED = (1 << 63) - 1
MAX_METADATA = 16
SCHEMA_NAME: Final = "[A-Za-z0-9_-]{1,64}"
TOKEN_ID: Final = "[0-9]{1,10}"
ANY_OBJECT = '{"type":"object"}'
"""Schema of ``response_format: json_object``."""


@dataclass(frozen=True, slots=True)
class EncodedText:
    """An image that is still text, already counted."""

    url: DataUrl
    is_coarse: bool
    param: str


@dataclass(slots=True)
class Prompt:
    """The messages of one request while they are read. Each method raises a ``ClientError`` where a limit is passed."""

    limits: IngressLimits
    messages: list[tuple[Role, list[Part | EncodedText]]] = field(default_factory=list)
    num_parts: int = 0
    num_images: int = 0
    num_text_chars: int = 0

    def begin(self, role: Role, param: str) -> None:
        """Open the next message; what is added goes into it. System messages that follow each other are one."""
        if role is Role.SYSTEM and self.messages and self.messages[-1][0] is Role.SYSTEM:
            self._add(TextPart("\n\n"), param)
            return
        if len(self.messages) >= self.limits.max_messages:
            raise InvalidRequest(
                f"request has more than {self.limits.max_messages} messages, the limit; send fewer", param="messages"
            )
        if role is Role.SYSTEM and self.messages:
            raise InvalidRequest("a system message may only come first; move it there", param=f"{param}.role")
        self.messages.append((role, []))

    def text(self, text: str, param: str) -> None:
        """Add words."""
        self.num_text_chars += len(text)
        if self.num_text_chars > self.limits.max_text_chars:
            raise PromptTooLong(
                f"This model's maximum context length is at most {self.limits.max_text_chars} characters here. "
                "However, your messages have more. Please reduce the length of the messages.",
                param=param,
            )
        check_unicode(text, param)
        self._add(TextPart(text), param)

    def image_url(self, url: str, param: str, *, is_coarse: bool = False) -> None:
        """Add an image that is in its URL, or one to be fetched.

        Whether its host may be asked is decided by the fetcher, which parses the URL.
        """
        if is_data_url(url):
            self._data_url(url, param, is_coarse)
            return
        if url[:8].lower() != "https://":
            raise ImageUrlRefused(
                f"image is {shown(url)}; send an https:// URL or a data: URL of a JPEG, PNG or WebP file", param=param
            )
        if len(url) > self.limits.max_url_chars:
            raise ImageUrlRefused(
                f"URL of the image has {len(url)} characters; the limit is {self.limits.max_url_chars}", param=param
            )
        check_unicode(url, param)
        self._count_image(param)
        self._add(ImagePart(url=url, is_coarse=is_coarse, param=param), param)

    def image_bytes(self, encoded: bytes, param: str) -> None:
        """Add an encoded file."""
        self._count_bytes(len(encoded), param)
        self._add(ImagePart(encoded=encoded, param=param), param)

    def _data_url(self, text: str, param: str, is_coarse: bool) -> None:
        """It stays text until everything is counted."""
        try:
            url = parse_data_url(text)
        except InvalidImage as error:
            error.param = param
            raise
        self._count_bytes(max(0, url.most_bytes - 2), param)
        self._add(EncodedText(url, is_coarse, param), param)

    def _count_bytes(self, num_bytes: int, param: str) -> None:
        self._count_image(param)
        limit = self.limits.max_bytes_per_image
        if num_bytes > limit:
            raise ImageTooLarge(f"image has {num_bytes} bytes; the limit is {limit}. Send a smaller one", param=param)
        if num_bytes <= 0:
            raise InvalidImage("image is empty; send a JPEG, PNG or WebP file", param=param)

    def _count_image(self, param: str) -> None:
        self.num_images += 1
        if self.num_images > self.limits.max_images:
            raise TooManyImages(
                f"request has more than {self.limits.max_images} images, the limit; send fewer", param=param
            )
        if self.messages[-1][0] is not Role.USER:
            raise InvalidRequest("only a user message may hold images; move it there", param=param)

    def _add(self, part: Part | EncodedText, param: str) -> None:
        self.num_parts += 1
        if self.num_parts > self.limits.max_parts:
            raise InvalidRequest(
                f"the messages have more than {self.limits.max_parts} parts, the limit; join some", param=param
            )
        self.messages[-1][1].append(part)

    async def finish(self) -> tuple[Message, ...]:
        """Decode what is still base64 and return the messages.

        Raises: InvalidRequest: there are none. InvalidImage: broken base64.
        """
        if not self.messages:
            raise InvalidRequest("messages is empty; send at least one", param="messages")
        done = []
        for role, parts in self.messages:
            done.append(Message(role, tuple([await _decoded(part) for part in parts])))
        return tuple(done)


async def _decoded(part: Part | EncodedText) -> Part:
    if not isinstance(part, EncodedText):
        return part
    try:
        return ImagePart(encoded=await decode_url(part.url), is_coarse=part.is_coarse, param=part.param)
    except InvalidImage as error:
        error.param = part.param
        raise


def check_stop(stop: Sequence[str], limits: IngressLimits, param: str) -> tuple[str, ...]:
    """Return the stop sequences. Raises: InvalidRequest: too many, too long, empty."""
    if len(stop) > limits.max_stop:
        raise InvalidRequest(f"{param} has {len(stop)} sequences; the limit is {limits.max_stop}", param=param)
    for text in stop:
        if not 0 < len(text) <= limits.max_stop_chars:
            raise InvalidRequest(
                f"{param} holds a sequence of {len(text)} characters; send 1 to {limits.max_stop_chars}", param=param
            )
        check_unicode(text, param)
    return tuple(stop)


def check_end(sampling: Sampling, where: str = "") -> None:
    """Check that an answer can end as it shall. ``where``: the object with the fields.

    Raises: InvalidRequest: it must be longer than it may, or go on after its schema is done.
    """
    if sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens:
        raise InvalidRequest(
            f"{where}min_tokens is {sampling.min_tokens} and the most tokens are {sampling.max_tokens}; lower the one "
            "or raise the other",
            param=f"{where}min_tokens",
        )
    if sampling.json_schema is not None and (sampling.ignore_eos or sampling.min_tokens):
        name = "ignore_eos" if sampling.ignore_eos else "min_tokens"
        raise InvalidRequest(
            f"{where}{name} goes with answers that are plain text: one with a schema ends with its JSON. Remove one "
            "of them",
            param=f"{where}{name}",
        )


def check_may_bias(rights: LogprobRights, param: str) -> None:
    """Raises: FeatureNotAllowed."""
    if not rights.is_open:
        raise FeatureNotAllowed(
            f"{param} is closed to this tenant: probabilities of tokens feed black-box attacks. "
            "Leave it out, or have the operator set allow_logprobs",
            param=param,
        )


def check_may_see_logprobs(rights: LogprobRights, num_images: int, param: str) -> None:
    """Raises: FeatureNotAllowed: closed to the tenant, or to its requests with images."""
    check_may_bias(rights, param)
    if num_images and not rights.with_images:
        raise FeatureNotAllowed(
            f"{param} is closed to this tenant for requests with images: probabilities are what a black-box attack on "
            "a picture learns from. Leave it out, or have the operator set image_logprobs",
            param=param,
        )


def check_num_biases(num_biases: int, limits: IngressLimits, param: str) -> None:
    """Raises: InvalidRequest: too many, found before any of them is looked at."""
    if num_biases > limits.max_logit_bias:
        raise InvalidRequest(f"{param} has {num_biases} entries; the limit is {limits.max_logit_bias}", param=param)


def check_logit_bias(bias: Mapping[int, float], limits: IngressLimits, param: str) -> dict[int, float]:
    """Return the bias of each token id. Raises: InvalidRequest."""
    check_num_biases(len(bias), limits, param)
    return {
        check_integer(token, 0, MAX_TOKENS, param): check_number(value, -MAX_BIAS, MAX_BIAS, f"{param}.{token}")
        for token, value in bias.items()
    }


def compact_schema(schema: dict[str, Any], limits: IngressLimits, param: str) -> str:
    """Return a JSON schema as compact text. Whether it compiles is found out later, by a process with limits.

    Raises: InvalidRequest: over the limits of bytes, depth or properties, or of ``SchemaBounds``; a number that is not
    finite.
    """
    size = num_properties = 0
    for depth, node, name in _nodes(schema):
        size += 1 + (len(node) if isinstance(node, str) else 0)
        if isinstance(node, dict):
            size += sum(map(len, node))
            num_properties += len(node) if name == "properties" else 0
        if size > limits.max_schema_bytes:
            break
        if depth > limits.max_schema_depth:
            raise _schema_error(f"nested deeper than {limits.max_schema_depth} levels", param)
        if num_properties > limits.max_schema_properties:
            raise _schema_error(f"of more than {limits.max_schema_properties} properties", param)
        if isinstance(node, float) and not math.isfinite(node):
            raise InvalidRequest(f"{param} holds the number {node}; every number must be finite", param=param)
    text = "" if size > limits.max_schema_bytes else json.dumps(schema, separators=(",", ":"), ensure_ascii=False)
    if size > limits.max_schema_bytes or len(text.encode("utf-8", "surrogatepass")) > limits.max_schema_bytes:
        raise _schema_error(f"of more than {limits.max_schema_bytes} bytes", param)
    check_unicode(text, param)
    SchemaBounds(schema, limits, param).check()
    return text


def _schema_error(what: str, param: str) -> InvalidRequest:
    return InvalidRequest(f"{param} is a schema {what}, the limit; simplify it", param=param)


def _nodes(schema: dict[str, Any]) -> Iterator[tuple[int, Any, str]]:
    """Every value of the schema with its depth, from 1, and the name under which it stands."""
    waiting: list[tuple[int, Any, str]] = [(1, schema, "")]
    while waiting:
        depth, node, name = waiting.pop()
        yield depth, node, name
        if isinstance(node, dict):
            waiting.extend((depth + 1, inner, key) for key, inner in node.items())
        elif isinstance(node, list):
            waiting.extend((depth + 1, inner, "") for inner in node)
