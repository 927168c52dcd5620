#!/usr/bin/env bash
# From a fresh checkout to a result: the small model on three small benchmarks, dense and pruned, side by side.
#   bash scripts/quickstart.sh
# 1000 questions per benchmark; `random` keeps about as many visual tokens as `paper`, `none` keeps none after layer 4.
# Writes runs/quickstart/summary.json and summary.png. Everything is measured in this run.
set -euo pipefail
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
prepare_environment ""

MODEL=playground/checkpoints/llava-tiny
"$PYTHON" -m llava.tiny.benchmarks
"$PYTHON" -m llava.eval.run --overwrite --out runs/quickstart --batch-size 16 --rounds 3 --timed-questions 24 \
    --model-path "$MODEL" --benchmark gqa_mini,mme_mini,textvqa_mini --max-new-tokens 16 \
    --config paper="$MODEL/pruning.json" \
    --config random=scripts/tiny/random.json \
    --config none=scripts/tiny/none.json
