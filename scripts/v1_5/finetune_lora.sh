#!/usr/bin/env bash
# LLaVA's second stage with a LoRA on the language model, the projector in full.
#   bash scripts/v1_5/finetune_lora.sh [more options of llava.train.train; the last one counts]
# Variables: MODEL, VISION_TOWER, PROJECTOR, DATA, IMAGES, OUT, GPUS, PYTHON.
# shellcheck source=scripts/v1_5/train_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/train_common.sh"
train "${MODEL:-lmsys/vicuna-7b-v1.5}" "${DATA:-playground/data/llava_v1_5_mix665k.json}" \
    "${IMAGES:-playground/data}" "${OUT:-checkpoints/llava-v1.5-7b-lora}" zero3 "${NEW_PROJECTOR[@]}" \
    "${CONVERSATIONS[@]}" "${LORA[@]}" "$@"
