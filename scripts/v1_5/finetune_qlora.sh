#!/usr/bin/env bash
# finetune_lora.sh with the language model quantized to 4 bits: one GPU of 24 GB (needs bitsandbytes).
#   bash scripts/v1_5/finetune_qlora.sh [more options of llava.train.train; the last one counts]
# Variables: MODEL, VISION_TOWER, PROJECTOR, DATA, IMAGES, OUT, GPUS, PYTHON.
# shellcheck source=scripts/v1_5/train_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/train_common.sh"
train "${MODEL:-lmsys/vicuna-7b-v1.5}" "${DATA:-playground/data/llava_v1_5_mix665k.json}" \
    "${IMAGES:-playground/data}" "${OUT:-checkpoints/llava-v1.5-7b-qlora}" zero2 "${NEW_PROJECTOR[@]}" \
    "${CONVERSATIONS[@]}" "${LORA[@]}" --bits 4 "$@"
