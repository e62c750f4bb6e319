"""A training loop as the documentation of Accelerate has it; its argument is the folder for the model."""

import sys
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from detr_panoptic import DetrPanopticConfig, DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.data import PanopticCollator
from detr_panoptic.scenes import SCENE_CATEGORIES, scenes_dataset

SMALL: Any = {"backbone": "test_resnet", "hidden_size": 32, "num_heads": 4, "encoder_layers": 1, "decoder_layers": 1}


def main() -> None:
    accelerator = Accelerator(gradient_accumulation_steps=2)
    torch.manual_seed(0)
    config = DetrPanopticConfig(**SMALL, num_queries=12, id2label=SCENE_CATEGORIES.id2label)
    model = DetrPanopticForSegmentation(config)
    processor = DetrPanopticImageProcessor.for_model(config, size={"height": 64, "width": 64})
    scenes = scenes_dataset(8, height=64, width=64)
    loader = DataLoader(scenes, batch_size=1, shuffle=True, collate_fn=PanopticCollator(processor))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    losses = accelerator.gather(loss.detach()[None])
    weights = sum(parameter.double().abs().sum() for parameter in model.parameters()).detach()
    same = accelerator.gather(weights[None])
    accelerator.print("losses", *losses.tolist())
    accelerator.print("weights", *same.tolist())
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(sys.argv[1])
    accelerator.end_training()


if __name__ == "__main__":
    main()
