#!/usr/bin/env bash
# Runs and scores TextVQA with VisiPruner: [VARIABLE=value ...] bash scripts/v1_5/visiPruner_eval/textvqa.sh
set -euo pipefail
BENCHMARK=TextVQA SPLIT_DEFAULT=llava_textvqa_val_v051_ocr REAL_FOLDER=textvqa TINY_FOLDER=textvqa_mini
# shellcheck source=scripts/v1_5/visiPruner_eval/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
configure "$@"

TEXTVQA_SITE=https://dl.fbaipublicfiles.com/textvqa
write_tiny_benchmark
need file "$QUESTION_FILE" "$EVAL_ZIP (extract it to $DATA_DIR)"
need folder "$BENCH_DIR/train_images" "$TEXTVQA_SITE/images/train_val_images.zip (extract it to $BENCH_DIR)"
need file "$BENCH_DIR/TextVQA_0.5.1_val.json" "$TEXTVQA_SITE/data/TextVQA_0.5.1_val.json"
need_model
stop_if_missing

run_chunks "$BENCH_DIR/train_images"
score llava.eval.eval_textvqa --annotation-file "$BENCH_DIR/TextVQA_0.5.1_val.json" --result-file ANSWERS
