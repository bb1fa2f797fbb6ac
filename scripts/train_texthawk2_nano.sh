#!/usr/bin/env bash
# Trains models/checkpoints/texthawk2-nano from nothing: fonts, the tower on dense labels, the connector on the same, the
# language model on what they see, then everything together, at last with more of what is hardest to say: how many, and
# that there is none. A part that is done is not done again. The shipped weights
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
stage all 4000 --from "$WORK" --tiles 36 --dense-tiles 16 --lr 5e-4 --tower-lr 3e-4 --final 0.04
stage last 600 --from "$WORK" --tiles 36 --dense-tiles 12 --lr 2.5e-4 --tower-lr 1.5e-4 --final 0.03 --seed 7 \
    --tasks word=0.11 line=0.19 chinese=0.09 two_pictures=0.03 ground_shape=0.06 ground_text=0.08 chinese_ground=0.03 \
    read_box=0.02 caption=0.07 count=0.13 absent=0.11 interview=0.16

"$PYTHON" -m models.training.texthawk2.export "$WORK" "$OUT"
"$PYTHON" -m models.training.texthawk2.card "$OUT"
