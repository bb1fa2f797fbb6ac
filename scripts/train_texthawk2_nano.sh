#!/usr/bin/env bash
# Trains models/checkpoints/texthawk2-nano from nothing: fonts, the tower on dense labels, the connector on the same, the
# language model on what they see, then everything together. A part that is done is not done again. The shipped weights
# went the same way with more detours (docs/experiments.md); this script was not run from end to end.
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
    "$PYTHON" -m "models.training.texthawk2.$module" --threads "$THREADS" "$@"
    touch "$WORK/$name.done"
}

stage() { run "$1" language_stage --out "$WORK" --steps "${@:2}"; }
run vision vision_stage --out "$WORK/vision" --steps 3000
stage tokens 8000 --vision "$WORK/vision" --tiles 0 --dense-tiles 20
stage answers 4000 --from "$WORK" --freeze vision --tiles 48 --shows 4 --final 0.15
stage all 4000 --from "$WORK" --tiles 24 --dense-tiles 8 --lr 6e-4 --tower-lr 3e-4 --final 0.03

"$PYTHON" -m models.training.texthawk2.export "$WORK" "$OUT"
"$PYTHON" -m models.training.texthawk2.card "$OUT"
