#!/usr/bin/env bash
# Trains models/checkpoints/texthawk2-nano from nothing: fonts, the tower on dense labels, the connector on the same, the
# language model on what they see, everything on small images, then on all. A part that is done is not done again. The
# shipped weights went the same way with more detours (docs/experiments.md); this script was not run from end to end.
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
finding=(word=.2 line=.08 chinese=.12 mixed_lines=.03 ground_shape=.28 ground_text=.1 chinese_ground=.05 read_box=.07 caption=.04 count=.03)

run vision vision_stage --out "$WORK/vision" --steps 1500
stage tokens 3000 --vision "$WORK/vision" --tiles 0 --dense-tiles 48 --final 0.3
stage answers 1500 --from "$WORK" --freeze tower --tiles 44 --dense-tiles 16 --tiles-per-image 1 --final 0.5 --tasks "${finding[@]}"
stage small 3000 --from "$WORK" --tiles 40 --dense-tiles 12 --tiles-per-image 1 --lr 1e-3 --tower-lr 3e-4 --final 0.4
stage all 3000 --from "$WORK" --tiles 40 --dense-tiles 8 --lr 4e-4 --tower-lr 2e-4 --final 0.03

"$PYTHON" -m models.training.texthawk2.export "$WORK" "$OUT"
"$PYTHON" -m models.training.texthawk2.card "$OUT"
