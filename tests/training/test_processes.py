"""Several processes with accumulated batches train as one process with one batch of everything."""

import socket
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import multiprocessing

from detr_panoptic.training.loop import train_step
from tests.conftest import build_tiny

NUM_PROCESSES = 2
PATIENCE = 300  # seconds; the processes take 15 on two free cores, most of it imports
# Numbers of targets in four images, of which each process gets two, as two batches.
CASES = {
    "unequal": (5, 0, 1, 2),
    "one process sees no object": (0, 0, 3, 1),
    "no object anywhere": (0, 0, 0, 0),
    "labels without masks": (2, 1, 0, 3),  # DistributedDataParallel refuses parameters without a gradient
}
EXACT_COEFFICIENT = 0.125  # a power of two: the normalizers, float32, then round nowhere, and float64 can be compared


def images(case):
    """One image of 40x56 for each count of a case, with so many targets, in float64."""
    counts = CASES[case]
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
    for target in labels if case == "labels without masks" else ():
        del target["masks"]
    pixel_values = torch.randn(len(counts), 3, 40, 56, generator=generator, dtype=torch.float64)
    return {"pixel_values": pixel_values, "pixel_mask": torch.ones(len(counts), 40, 56), "labels": labels}


def train_once(window, accelerator):
    """One update of plain gradient descent: the gradients, and the loss terms averaged over processes."""
    model = build_tiny(eos_coefficient=EXACT_COEFFICIENT).double().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    terms = train_step(prepared, window, optimizer, accelerator, max_grad_norm=1e9)
    means = accelerator.reduce(torch.stack(list(terms.values())), reduction="mean")
    gradients = {name: before[name] - p.detach() for name, p in model.named_parameters()}
    return gradients | dict(zip(terms, means, strict=True))


def share_of(rank, case):
    """The window of a process: its half of the images, one by one."""
    batch, share = images(case), len(CASES[case]) // NUM_PROCESSES
    rows = range(rank * share, (rank + 1) * share)
    return [{name: values[i : i + 1] for name, values in batch.items()} for i in rows]


def run_process(rank, port, work, folder):
    """What each process does: `work`, known to the others."""
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(NUM_PROCESSES),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        torch.set_num_threads(1)
        work(rank, Path(folder))


def train_all_cases(rank, folder):
    """Writes what came of each case."""
    accelerator = Accelerator(cpu=True)
    results = {case: train_once(share_of(rank, case), accelerator) for case in CASES}
    torch.save(results, folder / f"{rank}.pt")
    accelerator.end_training()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of each process, by case."""
    folder = tmp_path_factory.mktemp("processes")
    run_processes(train_all_cases, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(NUM_PROCESSES)]


def run_processes(work, folder):
    """Lets each process call `work` with its number and the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.spawn(run_process, args=(port, work, str(folder)), nprocs=NUM_PROCESSES, join=False)
    deadline = time.monotonic() + PATIENCE
    while not context.join(timeout=1):  # raises what a process raised
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail(f"The processes did not end within {PATIENCE} seconds: one waits for the other.")


@pytest.mark.parametrize("case", CASES)
def test_processes_and_accumulation_give_the_gradient_of_one_batch(results, case):
    """transformers divides a mean over processes by their number again: twice the processes, twice the loss."""
    expected = train_once([images(case)], Accelerator(cpu=True))
    for process in results:
        torch.testing.assert_close(process[case], expected, atol=1e-12, rtol=1e-9)
