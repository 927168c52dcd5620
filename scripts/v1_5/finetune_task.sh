#!/usr/bin/env bash
# A LLaVA on one's own task, in full.
#   bash scripts/v1_5/finetune_task.sh [more options of llava.train.train; the last one counts]
# Variables: MODEL, DATA, IMAGES, OUT, GPUS, PYTHON.
# shellcheck source=scripts/v1_5/train_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/train_common.sh"
train "${MODEL:-liuhaotian/llava-v1.5-7b}" "${DATA:-playground/data/llava_v1_5_mix665k.json}" \
    "${IMAGES:-playground/data}" "${OUT:-checkpoints/llava-v1.5-7b-task}" zero3 "${CONVERSATIONS[@]}" \
    --learning_rate 2e-5 "$@"
