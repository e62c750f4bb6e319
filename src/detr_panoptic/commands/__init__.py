"""The commands of `detr-panoptic`, one module each with `register` (its options) and the function that runs it.

Modules here import nothing heavy before their command runs: `--help` answers at once.
"""
