"""Small random panoptic models of transformers, saved with their processors as on the Hub."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPTokenizer,
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
    OneFormerImageProcessor,
    OneFormerProcessor,
    SwinConfig,
)

NAMES = ("person", "car", "sky-other-merged")  # of COCO: two things and stuff
KINDS = ("mask2former", "oneformer", "eomt")
SIDE = 64


def save_teacher(kind: str, folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    """Saves a model and its processor, with the license MIT in a model card."""
    torch.manual_seed(0)
    labels: Any = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    model, processor = {"mask2former": _mask2former, "oneformer": _oneformer, "eomt": _eomt}[kind](folder, labels)
    with torch.no_grad():  # queries that disagree and are sure
        for name, parameter in model.named_parameters():
            if "class_predictor" in name or "class_embed" in name:
                parameter.mul_(300)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A teacher\n")
    return folder


def _swin() -> SwinConfig:
    sizes: Any = {"image_size": SIDE, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 4}
    sizes |= {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    return SwinConfig(**sizes)


TEXTS: Any = {"max_seq_len": 11}
SMALL: Any = {"num_queries": 6, "dropout": 0.0, "decoder_layers": 2, "encoder_layers": 1, "num_attention_heads": 2}


def _mask2former(_: Path, labels: dict[str, Any]) -> tuple:
    config = Mask2FormerConfig(
        backbone_config=_swin(), hidden_dim=32, feature_size=32, mask_feature_size=32, encoder_feedforward_dim=16,
        dim_feedforward=16, **SMALL, **labels,
    )  # fmt: skip
    processor = Mask2FormerImageProcessor(size={"shortest_edge": SIDE, "longest_edge": 2 * SIDE}, num_labels=3)
    return Mask2FormerForUniversalSegmentation(config), processor


def _oneformer(folder: Path, labels: dict[str, Any]) -> tuple:
    folder.mkdir(parents=True, exist_ok=True)
    classes = {str(i): {"name": name, "isthing": int(i < 2)} for i, name in labels["id2label"].items()}
    (folder / "classes.json").write_text(json.dumps(classes))
    config = OneFormerConfig(
        backbone_config=_swin(), hidden_dim=32, mask_dim=32, conv_dim=32, encoder_feedforward_dim=16,
        dim_feedforward=16, is_training=False, task_seq_len=11, text_encoder_width=32,
        text_encoder_vocab_size=300, text_encoder_num_layers=1, text_encoder_n_ctx=4, **SMALL, **labels, **TEXTS,
    )  # fmt: skip
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    images = OneFormerImageProcessor(
        size={"shortest_edge": SIDE, "longest_edge": 2 * SIDE}, repo_path=str(folder), class_info_file="classes.json"
    )
    processor = OneFormerProcessor(images, tokenizer, max_seq_length=11, task_seq_length=11)
    return OneFormerForUniversalSegmentation(config), processor


def _eomt(_: Path, labels: dict) -> tuple:
    config = EomtConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_blocks=1, num_queries=6, image_size=SIDE,
        patch_size=16, mlp_ratio=2, num_upscale_blocks=2, **labels,
    )  # fmt: skip
    processor = EomtImageProcessor(size={"shortest_edge": SIDE, "longest_edge": SIDE}, do_pad=True)
    return EomtForUniversalSegmentation(config), processor
