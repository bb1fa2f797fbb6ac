"""The table of operating points beside a video checkpoint: ``operating_points.json``, written by a calibration.

{"format": 1, "kind": "video", "model": ID, "weights_sha256": HEX, "energy_source": TEXT, "device": TEXT,
 "points": [{name, variant, sampler, num_steps, attention, guidance_scale, quality, watts,
             "costs": [{width, height, num_frames, step_s, fixed_s}, ...]}, ...]}
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast

import msgspec

from models.contract import SettingError, Value
from models.io import ClipRequest
from schedulers.video_points import Clip, NearestMiss, VideoBudget, VideoPoint, choose
from serving.domain import Budget
from serving.errors import BudgetInfeasible, ConfigError, UnsupportedVideo
from serving.tasks.videos.limits import ClipLimits
from serving.tasks.videos.resolve import ChosenPoint

FILE_NAME = "operating_points.json"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPointTable:
    """What the file says. ``weights_sha256``: of the weights it was measured with, see ``weights_digest``.

    Raises: ValueError: no points, or two of one name.
    """

    format: Literal[1] = 1
    kind: Literal["video"] = "video"
    model: str
    weights_sha256: str
    energy_source: str
    device: str
    points: tuple[VideoPoint, ...]

    def __post_init__(self) -> None:
        names = [point.name for point in self.points]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"points are {names}; need some, of different names")


def weights_digest(checkpoint_dir: Path) -> str:
    """One digest of all weight files below a folder, with their names.

    Raises: ValueError: there are none.
    """
    files = _weights(checkpoint_dir)
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(checkpoint_dir).as_posix()} {digest}\n".encode())
    return total.hexdigest()


def youngest_s(checkpoint_dir: Path) -> int:
    """When the last of the weight files was written, Unix seconds. Raises: ValueError: there are none."""
    return int(max(path.stat().st_mtime for path in _weights(checkpoint_dir)))


def _weights(checkpoint_dir: Path) -> list[Path]:
    """In every form that is loaded. Raises: ValueError: there are none."""
    files = sorted(path for path in checkpoint_dir.rglob("*") if path.suffix in _WEIGHT_SUFFIXES)
    if not files:
        raise ValueError(f"no weights below {checkpoint_dir}")
    return files


def write_table(checkpoint_dir: Path, table: VideoPointTable) -> Path:
    """Write the file, whole or not at all. Returns its path."""
    path = checkpoint_dir / FILE_NAME
    draft = path.with_name(f".{FILE_NAME}.{os.getpid()}")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n")
    draft.replace(path)
    return path


def load_table(model_id: str, checkpoint_dir: Path) -> VideoPointTable:
    """Load and check the table.

    Raises: ConfigError: there is none, it is damaged, or it is of another model or other weights; with the remedy.
    """
    path, remedy = checkpoint_dir / FILE_NAME, f"run `vireo calibrate {model_id}`"
    try:
        table = msgspec.json.decode(path.read_bytes(), type=VideoPointTable)
        digest = weights_digest(checkpoint_dir)
    except OSError:
        raise ConfigError(f"model {model_id} has no operating points at {path}: {remedy}") from None
    except (ValueError, msgspec.MsgspecError) as error:
        raise ConfigError(f"operating points at {path} cannot be used ({error}): {remedy}") from None
    if table.model != model_id:
        raise ConfigError(f"operating points at {path} are of model {table.model}, not {model_id}: {remedy}")
    if table.weights_sha256 != digest:
        raise ConfigError(f"operating points at {path} were measured with other weights than those there: {remedy}")
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPoints:
    """``serving.tasks.videos.resolve.PointTable`` of a table, within what the model can do."""

    table: VideoPointTable
    limits: ClipLimits

    @property
    def names(self) -> tuple[str, ...]:
        """All points, best first."""
        ranked = sorted(self.table.points, key=lambda point: (-point.quality, point.num_steps))
        return tuple(point.name for point in ranked)

    def choose(
        self, clip: ClipRequest, fixed: Mapping[str, Value], budget: Budget, allowed_s: float | None
    ) -> ChosenPoint:
        """The best point that does what is wished for.

        Raises:
            UnsupportedVideo: none can, whatever it may cost.
            BudgetInfeasible: none fits; the message names the nearest.
        """
        io, given = self.limits.io, dict(fixed)
        wanted = Clip(
            width=io.width,
            height=io.height,
            num_frames=clip.num_frames,
            num_steps=cast("int | None", given.get("num_inference_steps")),
            guidance_scale=cast("float | None", given.get("guidance_scale")),
            sampler=cast("str | None", given.get("sampler")),
            attention=cast("str | None", given.get("attention")),
        )
        limits = VideoBudget(latency_s=allowed_s, energy_j=budget.energy_j, quality_floor=budget.quality_floor)
        choice = choose(self.table.points, wanted, limits, is_possible=partial(self._is_possible, clip, fixed))
        if isinstance(choice, NearestMiss):
            raise _refusal(choice)
        point = choice.point
        return ChosenPoint(
            name=point.name if choice.is_measured else "custom",
            point={
                "sampler": point.sampler,
                "num_inference_steps": point.num_steps,
                "guidance_scale": point.guidance_scale,
                "attention": point.attention,
            },
            predicted_s=choice.predicted_s,
            predicted_j=choice.predicted_j,
            degraded=choice.degraded,
        )

    def _is_possible(self, clip: ClipRequest, fixed: Mapping[str, Value], point: VideoPoint) -> bool:
        """Whether the sampler works with these weights and so many steps, and the rest of the point with the clip.

        What the caller has fixed is not looked at here: the limits refuse it, and say why.
        """
        made = self.limits.samplers.get(point.sampler)
        if made is None or made.weights != point.variant or not made.takes(point.num_steps):
            return False
        guides = "sampler" not in fixed and point.guidance_scale > 1
        settings: dict[str, Value] = {
            "sampler": point.sampler,
            "num_inference_steps": point.num_steps,
            "guidance_scale": point.guidance_scale if guides else 1.0,
            "attention": "dense" if "attention" in fixed else point.attention,
        }
        try:
            self.limits.check_allowed(clip, settings)
        except SettingError:
            return False
        return True


def _refusal(miss: NearestMiss) -> BudgetInfeasible | UnsupportedVideo:
    if miss.nearest is None:
        return UnsupportedVideo(f"{miss.message}; fix fewer of sampler, num_inference_steps and attention")
    names = {"latency": "latency_ms", "energy": "energy_j", "quality": "quality_floor"}
    return BudgetInfeasible(miss.message, param=f"vireo.{names[miss.breaks[0]]}")
