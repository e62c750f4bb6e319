"""The tests; this comes before any of them, and before huggingface_hub reads its environment."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network, and none shall wait for it
