#!/usr/bin/env bash
# Trains and exports vdit-nano: autoencoder, judge, latents, teacher, decoder, student; then evaluates it.
# Minutes are of one free CPU core; what there is already in the folder is kept.
set -euo pipefail
out=${1:-.cache/vdit-nano}
to=${2:-models/checkpoints/vdit-nano}
python=${PYTHON:-python}
mkdir -p "$out"
export OMP_NUM_THREADS=1

stage() { "$python" -m "models.vdit.training.$1" --out "$out" "${@:2}"; }

[ -f "$out/vae.safetensors" ] || stage vae_stage --minutes 25
[ -d "$out/judge" ] || stage judge_stage --minutes 10
[ -f "$out/latents-29-015.safetensors" ] || stage latents_stage --shards 16
[ -f "$out/vae_tuned.safetensors" ] || stage decoder_stage --minutes 15
[ -f "$out/teacher.safetensors" ] || stage dit_stage --minutes 40
[ -f "$out/student.safetensors" ] || stage distil_stage --minutes 12
"$python" -m models.vdit.training.export --out "$out" --to "$to"
"$python" -m models.vdit.evaluate "$to"
"$python" -m models.vdit.card "$to" --training "$out"
