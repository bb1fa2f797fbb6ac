"""Operating points of a classifier: the table that lies beside its checkpoint, or one point that nobody measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from models.identity import checkpoint_sha256
from models.registry import families
from schedulers.operating_points import OperatingPoint, OperatingPointTable
from serving.config import ResolvedModel, UnaryOptions
from serving.errors import ConfigError

FILE_NAME = "operating_points.json"
_FIRST_MACS_PER_S = 2e10
"""Of one processor core: a guess for what is reserved for a model that was never measured. What it really takes is
charged; its replicas measure what they plan with."""


def table_for(model: ResolvedModel[UnaryOptions]) -> OperatingPointTable:
    """The table of a served model. A unary one may do without: it then has one point, all settings at their defaults.

    Raises: ConfigError: no weights, or a table that cannot be used.
    """
    family, variant = families()[model.family], model.variant
    is_random = model.options.random_weights
    if family.shape == "staged" or (not is_random and variant.weights and (variant.weights / FILE_NAME).is_file()):
        return load_table(variant.id, variant.weights)
    if is_random:
        identity = hashlib.sha256(f"random weights of {variant}".encode()).hexdigest()
    elif variant.weights is not None:
        identity = checkpoint_sha256(variant.weights)
    else:
        raise ConfigError(
            f"model {model.id} has no weights here: name their folder (--model {model.id}=FOLDER, or checkpoint_dir), "
            "or set its option random_weights to measure its speed alone"
        )
    assert family.work is not None
    macs = float(family.work.load()(variant, None, family.check_point({})).units["macs"])
    return _unmeasured(model, identity, macs)


def _unmeasured(model: ResolvedModel[UnaryOptions], identity: str, macs: float) -> OperatingPointTable:
    seconds = max(1e-4, macs / (_FIRST_MACS_PER_S * model.threads))
    point = OperatingPoint(
        name="default",
        thresholds=(0.0,),
        exit_shares=(1.0,),
        expected_flops=macs,
        flops_fraction=1.0,
        ms_by_batch={1: 0.0},  # nobody is refused for a guess: a replica refuses what it cannot answer in time
        joules_per_sample=seconds * model.watts,
        accuracy=0.0,  # nobody has measured it, so no floor is met
    )
    return OperatingPointTable(
        model=model.id,
        checkpoint_sha256=identity,
        exit_flops=(macs,),
        batch_sizes=(1, 2),
        stage_seconds=((seconds, 2 * seconds),),
        energy_source="estimate",
        watts=model.watts,
        points=(point,),
        is_calibrated=False,
    )


def load_table(model_id: str, checkpoint_dir: Path | None) -> OperatingPointTable:
    """Load and check the table.

    Raises: ConfigError: there is none, it is damaged, or it belongs to another model or to other weights; the message
        names the command that writes one.
    """
    remedy = f"run `vireo calibrate {model_id}`"
    if checkpoint_dir is None:
        raise ConfigError(
            f"model {model_id} has no weights here: convert a checkpoint (`vireo convert`), then {remedy}"
        )
    path = checkpoint_dir / FILE_NAME
    try:
        table = OperatingPointTable.from_dict(json.loads(path.read_text(encoding="utf-8")))
        weights_sha256 = checkpoint_sha256(checkpoint_dir)
    except OSError:
        raise ConfigError(f"model {model_id} has no operating points at {path}: {remedy}") from None
    except ValueError as error:
        raise ConfigError(f"operating points at {path} cannot be used ({error}): {remedy}") from None
    if table.model != model_id:
        raise ConfigError(f"operating points at {path} are of model {table.model}, not {model_id}: {remedy}")
    if table.checkpoint_sha256 != weights_sha256:
        raise ConfigError(f"operating points at {path} were measured with other weights than those there: {remedy}")
    return table
