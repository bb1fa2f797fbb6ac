#!/usr/bin/env bash
# Checks and measures on a GPU what no CPU can show: kernels, attention, denoising steps, early exit, experts. What is
# left of the time trains texthawk2-nano, if transformers and the fonts of scripts/fonts.sh are there.
#
#   scripts/gpu_check.sh [FOLDER [MINUTES]]
#
# Needs a Python with torch and Triton (PYTHON, default python3) and this working tree; neither Ray nor vLLM, and nothing
# is installed. Takes eight minutes at most, and writes gpu-check.json, .md and, where there is matplotlib, .png.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m tests.benchmarks.bench_gpu_check --out "${1:-docs/benchmarks}" --minutes "${2:-8}"
