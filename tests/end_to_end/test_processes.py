"""Several processes and accumulated batches train as one process with one batch of everything."""

import socket
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import multiprocessing

from detr_panoptic.training.loop import train_step
from tests.conftest import build_tiny

NUM_PROCESSES = 2
COUNTS = (5, 0, 1, 2)  # targets of four images: two batches on each process, and one of the four without objects
TOLERANCE = {"atol": 1e-12, "rtol": 1e-9}


def images(counts):
    """One image of 40x56 for each count, with so many targets, in float64."""
    generator = torch.Generator().manual_seed(0)
    labels = [
        {
            "class_labels": torch.randint(3, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.1,
            "masks": torch.rand(count, 40, 56, generator=generator) > 0.5,
            "image_id": torch.tensor([i]),
        }
        for i, count in enumerate(counts)
    ]
    pixel_values = torch.randn(len(counts), 3, 40, 56, generator=generator, dtype=torch.float64)
    return {"pixel_values": pixel_values, "pixel_mask": torch.ones(len(counts), 40, 56), "labels": labels}


def rows_of(batch, rows):
    return {name: values[rows] for name, values in batch.items()}


def step(model, window, accelerator):
    """One update of plain gradient descent; returns what it changed, and the loss terms."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model, optimizer = accelerator.prepare(model, optimizer)
    terms = train_step(model, window, optimizer, accelerator, max_grad_norm=1e9)
    moved = {name: before[name] - p.detach() for name, p in accelerator.unwrap_model(model).named_parameters()}
    return moved, terms


def trained_by_one_process(counts):
    return step(build_tiny().double().train(), [images(counts)], Accelerator(cpu=True))


def train_on_process(rank, port, counts, folder):
    """Takes its half of the images as batches of one each, and leaves what came of it in a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        patch.setenv("MASTER_PORT", str(port))
        patch.setenv("WORLD_SIZE", str(NUM_PROCESSES))
        for name in ("RANK", "LOCAL_RANK"):
            patch.setenv(name, str(rank))
        torch.set_num_threads(1)
        accelerator = Accelerator(cpu=True)
        batch, share = images(counts), len(counts) // NUM_PROCESSES
        rows = range(rank * share, (rank + 1) * share)
        # The processes begin with different weights: those of the first count.
        model = build_tiny().double().train()
        moved, terms = step(model, [rows_of(batch, slice(i, i + 1)) for i in rows], accelerator)
        summed = accelerator.reduce(torch.stack(list(terms.values())), reduction="mean")
        torch.save((moved, dict(zip(terms, summed, strict=True))), Path(folder) / f"{rank}.pt")
        accelerator.end_training()


def trained_by_processes(counts, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.spawn(
        train_on_process, args=(port, counts, str(folder)), nprocs=NUM_PROCESSES, join=False
    )
    if not context.join(timeout=120):
        for process in context.processes:
            process.kill()
        pytest.fail("The processes wait for each other.")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(NUM_PROCESSES)]


def test_x(tmp_path):
    alone = trained_by_one_process(COUNTS)
    for p in trained_by_processes(COUNTS, tmp_path):
        torch.testing.assert_close(p, alone, **TOLERANCE)
