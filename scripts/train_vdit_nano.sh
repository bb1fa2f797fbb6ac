#!/usr/bin/env bash
# Trains, exports and evaluates vdit-nano: judge, autoencoder (narrow, then wider), latents, teacher, student, model card.
#
#   scripts/train_vdit_nano.sh [FOLDER [CHECKPOINT]]
#
# SCALE multiplies all times: 1 is about five hours of one free CPU core, 0.01 only tries the path.
# FROM=CHECKPOINT goes on from its weights: latents, teacher and student alone.
# DECODER=MINUTES also teaches a smaller decoder for so long; 13 were too few (docs/experiments.md).
# A stage that has ended is not run again (FOLDER/done-STAGE); one that was interrupted begins anew.
set -euo pipefail
out=${1:-.cache/vdit-nano}
to=${2:-models/checkpoints/vdit-nano}
python=${PYTHON:-python}
scale=${SCALE:-1}
from=${FROM:-}
mkdir -p "$out"
export OMP_NUM_THREADS=1

scaled() { awk "BEGIN { print $1 * $scale }"; }
whole() { awk "BEGIN { n = int($1 * $scale); print n < $2 ? $2 : n }"; }
stage() {
  [ -f "$out/done-$1" ] || "$python" -m "models.training.vdit.$2" --out "$out" "${@:3}"
  touch "$out/done-$1"
}

resume=() student=()
if [ -n "$from" ]; then
  resume=(--resume --lr 1e-3)
  student=(--begin-from "$from")
  stage unpacked unpack "$from"
else
  stage judge judge_stage --minutes "$(scaled 10)"
  stage narrow vae_stage --minutes "$(scaled 40)" --channels 4
  stage wide vae_stage --minutes "$(scaled 40)" --lr 6e-4 --seed 2 --resume "$out/vae.safetensors"
fi
[ -z "${DECODER:-}" ] || stage decoder decoder_stage --minutes "$(scaled "$DECODER")"
stage latents latents_stage --shards "$(whole 24 1)" --two 0.6
stage long latents_stage --frames 61 --first 100 --shards "$(whole 4 1)" --two 0.6
stage teacher dit_stage --minutes "$(scaled 120)" "${resume[@]}"
stage student distil_stage --minutes "$(scaled 30)" "${student[@]}"
"$python" -m models.training.vdit.export --out "$out" --to "$to"
"$python" -m models.training.vdit.evaluate "$to" --count "$(whole 200 2)" --two-count "$(whole 50 2)"
"$python" -m models.training.vdit.card "$to" --training "$out"
"$python" -m serving.cli calibrate "vdit-nano=$to"
rm -f "$to/samples.npz" # large, and only the card needs it
