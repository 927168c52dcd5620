#!/usr/bin/env bash
# A LLaVA from SmolLM2-135M-Instruct and the small model's vision tower: captions first, then a LoRA on questions.
#   bash scripts/smollm2/train.sh [more options of llava.train.train for the LoRA]
# Variables: OUT, PICTURES, PRETRAIN_STEPS, STEPS (of the LoRA), BATCH, PYTHON (with llava[train,gguf] installed).
# Stopped at any moment it goes on when started again. docs/training.md says what a step costs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-python3} OUT=${OUT:-runs/smollm2} PICTURES=${PICTURES:-16000} STEPS=${STEPS:-4000} BATCH=${BATCH:-4}
PRETRAIN_STEPS=${PRETRAIN_STEPS:-200}
CHECKPOINTS=playground/checkpoints

"$PYTHON" scripts/smollm2/prepare.py --out "$OUT"
[[ -f "$OUT/data/questions.json" ]] ||
    "$PYTHON" -m llava.train.tiny.files --out "$OUT/data" --pictures "$PICTURES"

SHARED=(--model_name_or_path "$CHECKPOINTS/smollm2-135m-instruct" --vision_tower "$CHECKPOINTS/llava-tiny/vision_tower")
SHARED+=(--version mpt --image_folder "$OUT/data/images" --model_max_length 1024 --bf16 True --report_to none)
SHARED+=(--per_device_train_batch_size "$BATCH" --save_steps 25 --save_total_limit 2)

[[ -f "$OUT/pretrain/mm_projector.bin" ]] || "$PYTHON" -m llava.train.train "${SHARED[@]}" \
    --data_path "$OUT/data/captions.json" --output_dir "$OUT/pretrain" --tune_mm_mlp_adapter True \
    --pretrain_mm_mlp_adapter "$OUT/start/mm_projector.bin" --learning_rate 2e-3 --warmup_ratio 0.05 --max_steps "$PRETRAIN_STEPS"

[[ -f "$OUT/llava-smollm2/adapter_model.safetensors" ]] || "$PYTHON" -m llava.train.train "${SHARED[@]}" \
    --data_path "$OUT/data/questions.json" --output_dir "$OUT/llava-smollm2" \
    --pretrain_mm_mlp_adapter "$OUT/pretrain/mm_projector.bin" --lora_enable True --lora_r 16 --lora_alpha 32 \
    --lora_dropout 0 --learning_rate 1e-3 --mm_projector_lr 1e-3 --warmup_ratio 0.02 --max_steps "$STEPS" "$@"

"$PYTHON" -m llava.tiny.accuracy --model-path "$OUT/llava-smollm2" --scenes 32
