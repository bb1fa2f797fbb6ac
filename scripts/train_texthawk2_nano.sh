#!/usr/bin/env bash
# Trains models/checkpoints/texthawk2-nano from nothing: fonts, the tower on dense labels, the whole model on small
# images, then on all. Each part is skipped when its result is there, so that an interrupted run goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
THREADS=${THREADS:-2}
WORK=.cache/texthawk2-nano
OUT=models/checkpoints/texthawk2-nano

bash scripts/fonts.sh
mkdir -p "$WORK/vision"
if [ ! -f "$WORK/vision.done" ]; then
    "$PYTHON" -m models.texthawk2.training.vision_stage --out "$WORK/vision" --steps 4000 --threads "$THREADS"
    touch "$WORK/vision.done"
fi
if [ ! -f "$WORK/small.done" ]; then
    "$PYTHON" -m models.texthawk2.training.language_stage --out "$WORK" --vision "$WORK/vision" \
        --tiles-per-image 1 --tiles 32 --dense-tiles 16 --steps 4000 --final 0.5 --threads "$THREADS"
    touch "$WORK/small.done"
fi
if [ ! -f "$WORK/all.done" ]; then
    "$PYTHON" -m models.texthawk2.training.language_stage --out "$WORK" --resume \
        --tiles 48 --dense-tiles 8 --steps 5000 --threads "$THREADS"
    touch "$WORK/all.done"
fi
"$PYTHON" -m models.texthawk2.training.export "$WORK" "$OUT"
"$PYTHON" -m models.texthawk2.card "$OUT" --training "$WORK"
