"""Training with a method on: every method in a user's own loop, and in TRL's trainer, by one line."""

import copy

import numpy as np
import pytest
import torch
from family_checkpoints import write_family
from family_models import CASES, Batch
from method_examples import EXAMPLES
from PIL import Image
from test_matrix import IMAGES_WHOLE
from transformers import Trainer

from llava import load_pretrained_model, prune


@pytest.mark.parametrize("method", EXAMPLES)
def test_every_method_trains_in_a_loop_of_ones_own(method):
    case = CASES["llava original"]
    batch = Batch(case, *case.prompts[:2])
    ids = batch.inputs["input_ids"]
    labels = ids.masked_fill(
        (ids < 0) | (batch.inputs["attention_mask"] == 0) | (torch.arange(ids.shape[1]) % 2 == 0), -100
    )
    model = copy.deepcopy(case.model).train().requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    with prune(model, EXAMPLES[method]) as session:
        for _ in range(3):
            loss = model(**batch.inputs, labels=labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[-1] < losses[0]
    pruned = any(trace.flops("all") < trace.dense_flops("all") for trace in session.traces)
    assert pruned is (method not in IMAGES_WHOLE)


def test_trls_trainer_trains_inside_prune(tmp_path):
    trl = pytest.importorskip("trl", reason="TRL is no dependency of this package")
    datasets = pytest.importorskip("datasets")

    class PrunedTrainer(trl.SFTTrainer):
        compute_loss = Trainer.compute_loss

    base = write_family(tmp_path / "base", "qwen2_vl")
    _, model, processor, _ = load_pretrained_model(base, None, None, device="cpu")
    image = Image.fromarray(np.zeros((20, 20, 3), np.uint8))
    asked = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "user", "content": asked}]
    messages.append({"role": "assistant", "content": [{"type": "text", "text": "a red square"}]})
    data = datasets.Dataset.from_list([{"images": [image], "messages": messages}] * 4)
    settings = {"max_steps": 2, "per_device_train_batch_size": 2, "report_to": "none", "max_length": None}
    args = trl.SFTConfig(str(tmp_path / "out"), use_cpu=True, logging_steps=1, learning_rate=1e-3, **settings)
    trainer = PrunedTrainer(model, args, train_dataset=data, processing_class=processor)
    with prune(model, {"method": "fastv", "k": 1}) as session:
        trainer.train()
    first, second = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert second < first
    assert len(session.traces) == 4 and session.traces[0].tokens_per_layer[-1] < session.traces[0].prompt_tokens
