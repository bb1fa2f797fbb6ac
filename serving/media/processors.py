"""The default processor factory: the one that belongs to the model."""

from __future__ import annotations

from serving.media.prepare import Processor


def load_processor(model_id: str) -> Processor:
    """Build the processor of a served model. Imports ``models`` here, and nothing that imports torch.

    Raises:
        ValueError: unknown model id.
    """
    from models.dyn_perceiver.processor import Processor as DynPerceiverProcessor
    from models.registry import get_spec

    return DynPerceiverProcessor(get_spec(model_id))
