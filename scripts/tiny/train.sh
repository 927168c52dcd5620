#!/usr/bin/env bash
# The small model from nothing: both recipes, the layers that need the image, a pruning config, the mini benchmarks.
#   bash scripts/tiny/train.sh            # variables: OUT, MINUTES (of one model), DEVICE, SEED
# Stopped at any moment it continues when started again. Results are in OUT; nothing in playground/ is touched.
set -euo pipefail
OUT=${OUT:-runs/tiny} MINUTES=${MINUTES:-90} DEVICE=${DEVICE:-auto} SEED=${SEED:-0}
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"
prepare_environment ""

"$PYTHON" -m llava.train.tiny --recipe both --resume --out "$OUT" --minutes "$MINUTES" --device "$DEVICE" --seed "$SEED"
"$PYTHON" -m llava.tiny.masks --device "$DEVICE" --out "$OUT/masks" \
    --model-path "$OUT/llava-tiny" "$OUT/llava-tiny-plain"
"$PYTHON" -m llava.tiny.benchmarks --split tune --questions 300 --out "$OUT/tune"
"$PYTHON" -m llava.tiny.tune --device "$DEVICE" --data-dir "$OUT/tune" --out "$OUT/tune/runs" \
    --model-path "$OUT/llava-tiny" --write "$OUT/llava-tiny/pruning.json"
"$PYTHON" -m llava.tiny.benchmarks --out "$OUT/eval"
"$PYTHON" -m llava.eval.run --overwrite --out "$OUT/suite" --data-dir "$OUT/eval" --batch-size 16 --device "$DEVICE" \
    --model-path "$OUT/llava-tiny" --benchmark gqa_mini,mme_mini,textvqa_mini --max-new-tokens 16 \
    --config paper="$OUT/llava-tiny/pruning.json" \
    --config random=scripts/tiny/random.json \
    --config none=scripts/tiny/none.json
