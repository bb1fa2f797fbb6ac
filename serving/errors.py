"""Every error that a caller of Vireo can meet.

``ClientError``: the request cannot be served as it is. ``Overloaded``: retry later. ``Cancelled``: the caller left.
``BackendError``: our fault.

Messages give the value, the limit and the remedy. They reach the client, so nothing internal may be put into
them; ``param`` names the offending field. Numbers of HTTP and gRPC live in ``serving/front/status.py`` only.
``ConfigError`` stands apart: it is raised at start-up and never travels to a client.
"""

from __future__ import annotations

from typing import ClassVar


class ServingError(Exception):
    """Root of everything that is reported to a caller."""

    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip between replicas with every field."""
        return _rebuild, (type(self), self.message, self.param, self.retry_after_s)


def _rebuild(cls: type[ServingError], message: str, param: str | None, retry_after_s: float | None) -> ServingError:
    return cls(message, param=param, retry_after_s=retry_after_s)


class ClientError(ServingError):
    """The request cannot be served as it is."""

    code = "invalid_request"
    type = "invalid_request_error"


class InvalidRequest(ClientError):
    """Malformed body, field or tensor."""


class UnknownField(InvalidRequest):
    """A field that no schema names."""

    code = "unknown_field"


class UnsupportedField(InvalidRequest):
    """A field that other servers take and this one refuses; the message says why."""

    code = "unsupported_field"


class UnsupportedVideo(InvalidRequest):
    """A setting of a clip that this checkpoint cannot do; the message names what it can."""

    code = "unsupported_video_setting"


class IdempotencyKeyReused(InvalidRequest):
    """The idempotency key was sent before with another request; the message names the fields that differ."""

    code = "idempotency_key_reused"


class PromptTooLong(InvalidRequest):
    """Prompt and answer together do not fit the model's context."""

    code = "context_length_exceeded"

    @classmethod
    def of_chat(cls, most: int, prompt: int, answer: int | None) -> PromptTooLong:
        """In the words of OpenAI, up to the numbers: client libraries look for them, and some read the numbers. Tokens:
        ``most`` of both together, ``prompt`` with its images, ``answer`` as asked for."""
        limit = f"This model's maximum context length is {most} tokens. However, you"
        shorter = "Please reduce the length of the messages"
        if answer is None or prompt >= most:
            said = f"{limit}r messages resulted in {prompt} tokens. {shorter}, or send fewer or smaller images."
        else:
            said = (
                f"{limit} requested {prompt + answer} tokens ({prompt} in the messages, {answer} in the completion). "
                f"{shorter} or completion: max_tokens may be {most - prompt}, or send fewer or smaller images."
            )
        return cls(said, param="messages")


class InvalidImage(ClientError):
    """Bytes that are no valid still image, or an image of a forbidden shape."""

    code = "invalid_image"


class UnsupportedMediaType(InvalidImage):
    """Neither JPEG nor PNG nor WebP, or a body of a content type that the path does not take."""

    code = "unsupported_media_type"


class ImageTooLarge(InvalidImage):
    """Bytes, pixels or sides over the limit."""

    code = "image_too_large"


class DecodeTimeout(InvalidImage):
    """Decoding took longer than the limit."""

    code = "decode_timeout"


class ImageUrlRefused(ClientError):
    """An image URL that is not fetched: not https, or of a host that is not on the server's list."""

    code = "image_url_refused"


class ImageFetchFailed(ClientError):
    """The host of an image URL could not be reached in time, or did not answer with an image."""

    code = "image_fetch_failed"


class PayloadTooLarge(ClientError):
    """The whole request is over the limit."""

    code = "payload_too_large"


class TooManyImages(ClientError):
    """More images than one request may carry."""

    code = "too_many_images"


class UnknownModel(ClientError):
    """No model of that id is served here."""

    code = "model_not_found"


class UnknownVideo(ClientError):
    """No video job of that id belongs to the caller; it may have expired."""

    code = "video_not_found"


class VideoNotReady(ClientError):
    """The video job is not completed yet, so it has no content."""

    code = "video_not_ready"


class VideoFailed(ClientError):
    """The video job has ended without a clip; the job's own error says why."""

    code = "video_failed"


class UnknownImage(ClientError):
    """No image job of that id belongs to the caller; it may have expired."""

    code = "image_not_found"


class ImageNotReady(ClientError):
    """The image job is not completed yet, so it has no content."""

    code = "image_not_ready"


class ImageFailed(ClientError):
    """The image job has ended without an image; the job's own error says why."""

    code = "image_failed"


class RangeNotSatisfiable(ClientError):
    """The range asked for is not within the file."""

    code = "range_not_satisfiable"


class UnknownPath(ClientError):
    """No resource at that path."""

    code = "not_found"


class MethodNotAllowed(ClientError):
    """The path exists and does not take that method."""

    code = "method_not_allowed"


class UnsupportedEncoding(ClientError):
    """A gRPC call whose messages are compressed."""

    code = "unsupported_encoding"


class UnknownService(ClientError):
    """No gRPC service of that name is known to the health check."""

    code = "service_not_found"


class SlowBody(ClientError):
    """The body did not arrive in time."""

    code = "request_timeout"
    type = "timeout_error"


class Unauthenticated(ClientError):
    """No API key, or a wrong one."""

    code = "invalid_api_key"
    type = "authentication_error"


class Forbidden(ClientError):
    """Authenticated or not, this caller may not do this."""

    code = "forbidden"
    type = "permission_error"


class FeatureNotAllowed(Forbidden):
    """The operator has not opened this feature to the caller's tenant."""

    code = "feature_not_allowed"


class BudgetInfeasible(ClientError):
    """No operating point fits the latency, energy and quality that the request asks for."""

    code = "budget_infeasible"


class QuotaTooSmall(ClientError):
    """The request takes more than the tenant's bucket or its cap on a day or a month ever leaves: it never fits."""

    code = "quota_too_small"


class DeadlineExceeded(ClientError):
    """The deadline passed before an answer existed; the rest of the work was not run."""

    code = "deadline_exceeded"
    type = "timeout_error"


class Overloaded(ServingError):
    """Try again later: ``retry_after_s`` says when."""

    code = "overloaded"
    type = "rate_limit_error"


class QueueFull(Overloaded):
    """The bounded queue is full, or the caller's part of it."""

    code = "queue_full"


class DeadlineUnreachable(Overloaded):
    """The work queued already takes longer than the deadline allows."""

    code = "deadline_unreachable"


class QuotaExceeded(Overloaded):
    """The tenant's joule or second bucket does not hold enough for this request now."""

    code = "quota_exceeded"


class SpendCapReached(Overloaded):
    """The tenant has spent its joules of this day or month, or leaves too little for this request."""

    code = "spend_cap_reached"


class TooManyInFlight(Overloaded):
    """The tenant has as many requests under way on this gateway as it may."""

    code = "tenant_in_flight_exceeded"


class TooManyJobs(Overloaded):
    """The tenant has as many jobs that are not over as it may."""

    code = "tenant_jobs_exceeded"


class TooManyBytes(Overloaded):
    """The tenant's chats on this replica need as much memory for keys and values as they may."""

    code = "tenant_kv_exceeded"


class TooManyLatentBytes(Overloaded):
    """With this job, the tenant's jobs that are not over could hold more memory than they may."""

    code = "tenant_latent_exceeded"


class DeepShareSpent(Overloaded):
    """As many of the tenant's rows have reached the last exit of late as may, and no other point fits the budget."""

    code = "tenant_deep_share_exceeded"


class Draining(Overloaded):
    """This replica is shutting down."""

    code = "draining"


class NotReady(Overloaded):
    """The server is up and cannot answer yet, or not any more."""

    code = "not_ready"


class Cancelled(ServingError):
    """The caller went away."""

    code = "cancelled"
    type = "cancelled_error"


class BackendError(ServingError):
    """A failure that is not the caller's."""


class EngineFailed(BackendError):
    """The engine failed on this sample."""

    code = "engine_failed"


class ReplicaLost(BackendError):
    """The replica died, and so did its replacements until the retries ran out."""

    code = "replica_lost"


class RetriesSpent(ReplicaLost):
    """The replica died, and too many requests are being sent again already (10% in 10 s, or what one replica holds)."""

    code = "retries_spent"


class StoreUnavailable(BackendError):
    """The job index or the store of files cannot be reached, and jobs do not go without; everything else does."""

    code = "store_unavailable"
    was_sent: bool = True
    """Whether the store may have heard of the call."""


class AccountUnavailable(BackendError):
    """A tenant's account cannot be read; it is refused without (`fail_closed`), or asks for over a gateway's share."""

    code = "account_unavailable"


class StoreFull(StoreUnavailable):
    """A store answers and has no room to write: reads still work. Clients meet it as the error of a job."""

    code = "store_full"


class ConfigError(Exception):
    """The configuration is wrong; the process must not start."""
