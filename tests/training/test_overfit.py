"""Training from images to segments: a tiny model overfits two scenes."""

import torch
from accelerate import Accelerator

from detr_panoptic import DetrPanopticConfig, DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.data import PanopticCollator
from detr_panoptic.evaluation import PanopticQuality
from detr_panoptic.inference import Predictor
from detr_panoptic.scenes import SCENE_CATEGORIES, make_scene
from detr_panoptic.training.loop import train_step
from detr_panoptic.training.optimization import build_optimizer, build_schedule
from detr_panoptic.training.settings import OptimizationSettings

SCENES = (27, 199)  # seven and eight segments, three houses and boats among them, none a speck
STEPS = 400
SCENE_SIDE = 64  # pixels
MODEL_SIDE = 128  # what the model sees: a mask has a quarter of it, and is compared at the scene's own size


def quality(model, processor, scenes):
    predictor, measured = Predictor(model, processor), PanopticQuality(SCENE_CATEGORIES)
    for scene in scenes:
        measured.update(scene, predictor(scene["image"]))
    return measured.compute().pq


def test_a_tiny_model_learns_two_scenes_by_heart():
    scenes = [make_scene(seed, height=SCENE_SIDE, width=SCENE_SIDE) for seed in SCENES]
    torch.manual_seed(0)
    config = DetrPanopticConfig(
        backbone="test_resnet",
        hidden_size=128,
        encoder_layers=1,
        decoder_layers=2,
        num_heads=4,
        ffn_dim=128,
        num_queries=16,
        dropout=0.0,
        mask_loss_coefficient=5,
        dice_loss_coefficient=5,
        id2label=SCENE_CATEGORIES.id2label,
        stuff_label_ids=SCENE_CATEGORIES.stuff_label_ids,
        category_ids=list(SCENE_CATEGORIES.category_ids),
        threshold=0.85,  # of the paper's evaluation
    )
    model = DetrPanopticForSegmentation(config).train()
    size = {"shortest_edge": MODEL_SIDE, "longest_edge": MODEL_SIDE}
    processor = DetrPanopticImageProcessor.for_model(config, size=size)
    batch = dict(PanopticCollator(processor)(scenes))
    arguments = OptimizationSettings(
        learning_rate=1e-3, backbone_learning_rate=1e-3, schedule="cosine", warmup_steps=40, max_grad_norm=1.0
    )
    accelerator = Accelerator(cpu=True)
    optimizer = build_optimizer(model, arguments)
    schedule = build_schedule(optimizer, arguments, total_steps=STEPS)
    assert quality(model, processor, scenes) < 0.1
    for _ in range(STEPS):
        train_step(model, [batch], optimizer, accelerator, max_grad_norm=arguments.max_grad_norm)
        schedule.step()
    reached = quality(model, processor, scenes)
    assert reached > 0.8, reached
