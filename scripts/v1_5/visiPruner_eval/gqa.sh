#!/usr/bin/env bash
# Runs and scores GQA (testdev-balanced) with VisiPruner: [VARIABLE=value ...] bash scripts/v1_5/visiPruner_eval/gqa.sh
set -euo pipefail
BENCHMARK=GQA SPLIT_DEFAULT=llava_gqa_testdev_balanced REAL_FOLDER=gqa TINY_FOLDER=gqa_mini
# shellcheck source=scripts/v1_5/visiPruner_eval/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
configure "$@"

GQA_SITE=https://cs.stanford.edu/people/dorarad/gqa/download.html
write_tiny_benchmark
need file "$QUESTION_FILE" "$EVAL_ZIP (extract it to $DATA_DIR)"
need folder "$BENCH_DIR/data/images" "GQA's images, $GQA_SITE"
need file "$BENCH_DIR/data/testdev_balanced_questions.json" "GQA's questions (balanced), $GQA_SITE"
need_model
stop_if_missing

run_chunks "$BENCH_DIR/data/images"
score llava.eval.eval_gqa --questions "$BENCH_DIR/data/testdev_balanced_questions.json" --answers ANSWERS
