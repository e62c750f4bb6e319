"""Training: `detr_panoptic.train` and its settings, which need neither torch nor transformers."""
