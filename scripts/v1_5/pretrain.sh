#!/usr/bin/env bash
# LLaVA's first stage: a projector between a vision tower and a language model, on captions (published: 8 GPUs).
#   bash scripts/v1_5/pretrain.sh [more options of llava.train.train; the last one counts]
# Variables: MODEL, VISION_TOWER, DATA, IMAGES, OUT, GPUS, PYTHON. Stopped, it goes on from its last checkpoint.
# shellcheck source=scripts/v1_5/train_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/train_common.sh"
train "${MODEL:-lmsys/vicuna-7b-v1.5}" "${DATA:-playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}" \
    "${IMAGES:-playground/data/LLaVA-Pretrain/images}" "${OUT:-checkpoints/llava-v1.5-7b-pretrain}" zero2 \
    --vision_tower "${VISION_TOWER:-openai/clip-vit-large-patch14-336}" --version plain --tune_mm_mlp_adapter True \
    --per_device_train_batch_size 32 --learning_rate 1e-3 --save_steps 24000 "$@"
