#!/usr/bin/env bash
# Runs and scores MME with VisiPruner: [VARIABLE=value ...] bash scripts/v1_5/visiPruner_eval/mme.sh
set -euo pipefail
BENCHMARK=MME SPLIT_DEFAULT=llava_mme REAL_FOLDER=MME TINY_FOLDER=mme_mini
# shellcheck source=scripts/v1_5/visiPruner_eval/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
configure "$@"

MME_SITE=https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation
RELEASE=$BENCH_DIR/MME_Benchmark_release_version
write_tiny_benchmark
need file "$QUESTION_FILE" "$EVAL_ZIP (extract it to $DATA_DIR)"
need folder "$RELEASE" "MME's authors, $MME_SITE (images and questions, one folder a task)"
need_model
stop_if_missing

run_chunks "$RELEASE"
score llava.eval.eval_mme --questions "$QUESTION_FILE" --references "$RELEASE" --answers ANSWERS
