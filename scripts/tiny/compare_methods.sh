#!/usr/bin/env bash
# All pruning methods at the same FLOPs of visual tokens (−30%, −50%, −60% of dense) on the small model's benchmarks,
# with random, a smaller picture, nothing pruned and no image as controls: tables; summary.json, table.csv, accuracy.png in OUT.
#   bash scripts/tiny/compare_methods.sh               # about 70 configs: hours on one CPU core
#   bash scripts/tiny/compare_methods.sh --limit 100   # arguments of llava.eval.compare_methods; --help lists them
# Variables: MODEL (checkpoint), OUT.
# An interrupted run continues when it is started again.
set -euo pipefail
MODEL=${MODEL:-playground/checkpoints/llava-tiny} OUT=${OUT:-runs/compare_methods}
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"
prepare_environment ""

"$PYTHON" -m llava.tiny.benchmarks
"$PYTHON" -m llava.tiny.benchmarks --split tune
"$PYTHON" -m llava.eval.compare_methods --model-path "$MODEL" --out "$OUT" --tune-dir playground/data/eval/tune \
    --benchmark gqa_mini,mme_mini,textvqa_mini --count visual --config paper="$MODEL/pruning.json" "$@"
