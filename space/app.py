"""The page as a Hugging Face Space. A variable MODEL of the Space names another model than the one that ships."""

import os
import sys

from detr_panoptic.commands import main

command = ["app", "--host", "0.0.0.0", "--port", os.environ.get("GRADIO_SERVER_PORT", "7860")]
if model := os.environ.get("MODEL"):
    command += ["--model", model]
sys.exit(main(command))
