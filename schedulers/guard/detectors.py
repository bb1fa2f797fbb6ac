"""Names of what the guard looks at. Each is a switch, a label of a metric, and a reason that an answer may give."""

from __future__ import annotations

from enum import StrEnum


class Layer(StrEnum):
    """At the gateway: ``screen``, of pixels; ``replay``, of a picture that was confirmed. On the tokens of an answer:
    ``length``, over what its text lets expect; ``repeat``, few different 4-grams; ``special``, tokens that nobody
    sees; ``eos``, the end made improbable. Of a suspect: ``squeeze``, an embedding that moves when its picture is
    coarsened; ``confirm``, the same question about a purified copy."""

    SCREEN = "screen"
    REPLAY = "replay"
    LENGTH = "length"
    REPEAT = "repeat"
    SPECIAL = "special"
    EOS = "eos"
    SQUEEZE = "squeeze"
    CONFIRM = "confirm"


ALL = tuple(str(layer) for layer in Layer)
ON_TOKENS = (str(Layer.LENGTH), str(Layer.REPEAT), str(Layer.SPECIAL), str(Layer.EOS))
"""Those of ``StreamMonitor``."""
