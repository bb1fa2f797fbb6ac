"""Shape of an OpenSoraT2V transformer: the fields of the published config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_FIXED: dict[str, tuple[Any, ...]] = {
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "attention_type": ("default",),
    "norm_type": ("ada_norm_single",),
    "norm_elementwise_affine": (False,),
    "use_rope": (True,),
    "downsampler": (None, ""),
    "double_self_attention": (False,),
    "only_cross_attention": (False,),
    "patch_size_t": (1,),
}
"""What this implementation does; a config.json that says otherwise is of another model."""
_UNUSED = frozenset(
    ("dropout", "norm_num_groups", "num_vector_embeds", "num_embeds_ada_norm", "use_linear_projection",
     "upcast_attention", "use_additional_conditions", "attention_mode", "use_stable_fp32", "hidden_size")
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OpenSoraConfig:
    """Defaults are those of OpenSoraT2V-ROPE-L/122.

    ``sample_size`` and ``sample_size_t``: latent rows, columns and frames of the checkpoint; only what
    ``interpolation_scale_thw`` does not say follows from them.

    Raises: ValueError: a head dim that RoPE in three axes cannot divide, or widths that do not fit.
    """

    num_attention_heads: int = 24
    attention_head_dim: int = 96
    num_layers: int = 32
    in_channels: int = 4
    out_channels: int = 4
    patch_size: int = 2
    cross_attention_dim: int = 2304
    caption_channels: int = 4096
    norm_eps: float = 1e-6
    sample_size: tuple[int, int] = (90, 160)
    sample_size_t: int = 24
    interpolation_scale_thw: tuple[float, float, float] = (1.0, 1.5, 2.0)

    def __post_init__(self) -> None:
        if self.attention_head_dim % 6:
            raise ValueError(f"attention_head_dim is {self.attention_head_dim}; RoPE in 3 axes needs a multiple of 6")
        if self.cross_attention_dim != self.width:
            raise ValueError(
                f"cross_attention_dim {self.cross_attention_dim} must equal num_attention_heads x attention_head_dim = "
                f"{self.width}: captions are projected to the model's width"
            )
        if min(self.interpolation_scale_thw) <= 0:
            raise ValueError(f"interpolation_scale_thw is {self.interpolation_scale_thw}; need positive numbers")

    @property
    def width(self) -> int:
        """Width of a token."""
        return self.num_attention_heads * self.attention_head_dim

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Patches of latents of that size.

        Raises: ValueError: the patch does not divide it.
        """
        if frames < 1 or height % self.patch_size or width % self.patch_size:
            raise ValueError(f"latents of {frames}x{height}x{width}; sides must be multiples of {self.patch_size}")
        return frames, height // self.patch_size, width // self.patch_size

    @classmethod
    def from_dict(cls, written: dict[str, Any]) -> OpenSoraConfig:
        """From the published config.json.

        Raises: ValueError: a field that is not known, or a value that this implementation does not do.
        """
        values = {key: value for key, value in written.items() if not key.startswith("_") and key not in _UNUSED}
        for key, allowed in _FIXED.items():
            value = values.pop(key, allowed[0])
            if value not in allowed:
                raise ValueError(f"config.json has {key} = {value!r}; only {allowed[0]!r} is implemented")
        scales = [values.pop(f"interpolation_scale_{axis}", None) for axis in "thw"]
        rows, columns = _pair(values.pop("sample_size", cls.sample_size))
        frames = values.pop("sample_size_t", cls.sample_size_t)
        defaults = ((frames - 1) // 16 + 1 if frames % 2 else frames / 16, rows / 30, columns / 40)
        thw = tuple(float(default if scale is None else scale) for scale, default in zip(scales, defaults, strict=True))
        unknown = sorted(values.keys() - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(f"config.json of the transformer has fields that are not known: {', '.join(unknown)}")
        return cls(
            sample_size=(rows, columns),
            sample_size_t=frames,
            interpolation_scale_thw=(thw[0], thw[1], thw[2]),
            **values,
        )

    def to_dict(self) -> dict[str, Any]:
        """In the published form; ``from_dict`` reads it."""
        scales = {f"interpolation_scale_{axis}": self.interpolation_scale_thw[i] for i, axis in enumerate("thw")}
        fixed = {key: allowed[0] for key, allowed in _FIXED.items()}
        own = {key: getattr(self, key) for key in self.__dataclass_fields__ if key != "interpolation_scale_thw"}
        return {"_class_name": "OpenSoraT2V", **own, "sample_size": list(self.sample_size), **scales, **fixed}


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))
