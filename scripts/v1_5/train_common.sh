# Sourced by the training scripts: what LLaVA-1.5's stages share.
# shellcheck shell=bash
set -euo pipefail

# the projector of the first stage before a language model
NEW_PROJECTOR=(--vision_tower "${VISION_TOWER:-openai/clip-vit-large-patch14-336}")
NEW_PROJECTOR+=(--pretrain_mm_mlp_adapter "${PROJECTOR:-checkpoints/llava-v1.5-7b-pretrain/mm_projector.bin}")
# LLaVA cuts what is longer than the model without a word
CONVERSATIONS=(--version v1 --image_aspect_ratio pad --group_by_modality_length True --cut_long True)
CONVERSATIONS+=(--per_device_train_batch_size 16 --save_steps 50000)
# shellcheck disable=SC2034
LORA=(--lora_enable True --lora_r 128 --lora_alpha 256 --learning_rate 2e-4 --mm_projector_lr 2e-5)

# train MODEL DATA IMAGES OUT ZERO OPTIONS…: DeepSpeed where it is installed; GPUS above 1 start torchrun
train() {
    local model=$1 data=$2 images=$3 out=$4 zero=$5 python=${PYTHON:-python3} launch found
    shift 5
    cd "$(dirname "${BASH_SOURCE[0]}")/../.."
    launch=("$python")
    if ((${GPUS:-1} > 1)); then launch+=(-m torch.distributed.run --nproc-per-node "$GPUS"); fi
    found=$("$python" -c "
import importlib.util, torch
print('--tf32 True' if torch.cuda.is_available() else '')
print('--deepspeed scripts/$zero.json' if importlib.util.find_spec('deepspeed') else '')")
    # shellcheck disable=SC2086
    exec "${launch[@]}" -m "llava.train.${TRAINER:-train}" $found \
        --model_name_or_path "$model" --data_path "$data" --image_folder "$images" --output_dir "$out" \
        --num_train_epochs 1 --lr_scheduler_type cosine --warmup_ratio 0.03 --weight_decay 0 --bf16 True \
        --gradient_checkpointing True --model_max_length 2048 --mm_projector_type mlp2x_gelu \
        --mm_vision_select_layer -2 --mm_use_im_start_end False --mm_use_im_patch_token False \
        --save_total_limit 1 --logging_steps 1 --dataloader_num_workers 4 --report_to none "$@"
}
