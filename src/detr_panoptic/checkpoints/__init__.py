"""Checkpoints of other DETR implementations, and the checkpoint that comes with the package."""

from pathlib import Path

BUNDLED = Path(__file__).parent / "scenes"
"""Folder of the bundled checkpoint, a small model trained on generated scenes."""
