#!/usr/bin/env bash
# Trains models/checkpoints/texthawk2-nano from nothing: fonts, the tower on dense labels, the connector on the same, the
# language model on what they see, everything on small images, then on all. A part that is done is not done again.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
THREADS=${THREADS:-2}
WORK=.cache/texthawk2-nano
OUT=models/checkpoints/texthawk2-nano

bash scripts/fonts.sh
mkdir -p "$WORK/vision"
# run NAME MODULE ARGUMENTS...: one part, unless it is done.
run() {
    local name=$1 module=$2
    shift 2
    [ -f "$WORK/$name.done" ] && return
    "$PYTHON" -m "models.texthawk2.training.$module" --threads "$THREADS" "$@"
    touch "$WORK/$name.done"
}

run vision vision_stage --out "$WORK/vision" --steps 1500
run tokens language_stage --out "$WORK" --vision "$WORK/vision" --tiles 0 --dense-tiles 32 --steps 1200 --final 0.5
run answers language_stage --out "$WORK" --resume --freeze tower --tiles 40 --tiles-per-image 1 --steps 1200 --final 0.25
run small language_stage --out "$WORK" --resume --tiles 40 --dense-tiles 16 --tiles-per-image 1 --steps 3000 --final 0.5
run all language_stage --out "$WORK" --resume --tiles 48 --dense-tiles 8 --steps 4000

"$PYTHON" -m models.texthawk2.training.export "$WORK" "$OUT"
"$PYTHON" -m models.texthawk2.card "$OUT" --training "$WORK"
