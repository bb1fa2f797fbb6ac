#!/usr/bin/env bash
# Trains models/checkpoints/texthawk2-nano-verbose from texthawk2-nano's weights: fonts, training, evaluation and card.
# Interrupted, it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
WORK=.cache/texthawk2-nano-verbose
OUT=models/checkpoints/texthawk2-nano-verbose

bash scripts/fonts.sh
"$PYTHON" -m models.training.texthawk2.verbose.train --out "$WORK" "$@"
"$PYTHON" -m models.training.texthawk2.export "$WORK" "$OUT"
"$PYTHON" -m models.training.texthawk2.verbose.evaluate "$OUT"
