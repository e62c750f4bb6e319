"""Weights that are sharded over processes (FSDP2) train as whole ones do, and are saved whole."""

import warnings
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from detr_panoptic import DetrPanopticForSegmentation
from detr_panoptic.commands.frame import CommandError
from detr_panoptic.training import loop
from detr_panoptic.training.arguments import TrainingArguments
from detr_panoptic.training.loop import train_step, unsharded
from detr_panoptic.training.run import TrainingRun, prepare_sharding
from tests.conftest import build_tiny
from tests.end_to_end.test_processes import EXACT_COEFFICIENT, images, run_processes, share_of, train_once

CASE = "unequal"
FSDP = {  # what `accelerate launch --use_fsdp --fsdp_version 2` sets
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",  # the parts that the model names are sharded one by one
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}
STEPS = 6
SETTINGS = {
    "model": {
        "backbone": "test_resnet",
        "hidden_size": 32,
        "num_heads": 4,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "ffn_dim": 32,
        "num_queries": 12,
        "freeze_backbone": True,
        "aids": True,
    },
    "data": {"data": "scenes", "limit": 6, "short_side": 64, "long_side": 64, "augmentation": "flip", "workers": 0},
    "optimization": {"batch_size": 1, "epochs": 2, "ema_decay": 0.9},
    "run": {"checkpoint_every": 2, "log_every": 1},
}


def pretend_gpus(patch):
    """Accelerate shards weights on GPUs alone and takes DDP elsewhere, without a word; torch shards anywhere."""
    for name, value in FSDP.items():
        patch.setenv(name, value)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")


def train_sharded(rank, accelerator):
    """As `train_once`, with weights that are gathered in the end."""
    model = build_tiny(eos_coefficient=EXACT_COEFFICIENT).double().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    held = sum(p.to_local().numel() for p in prepared.parameters())
    assert held < 0.7 * sum(p.numel() for p in before.values())
    terms = train_step(prepared, share_of(rank, CASE), optimizer, accelerator, max_grad_norm=1e9)
    means = accelerator.reduce(torch.stack(list(terms.values())), reduction="mean")
    gradients = {name: before[name] - unsharded(p.detach()) for name, p in prepared.named_parameters()}
    return gradients | dict(zip(terms, means, strict=True))


def arguments_for(output):
    return TrainingArguments.from_dict(SETTINGS | {"run": SETTINGS["run"] | {"output": str(output)}})


class KilledError(BaseException):
    """No `except` of the program sees this."""


def train_and_die(output, *, after):
    step, done = loop.train_step, []

    def dying(*arguments, **options):
        if len(done) == after:
            raise KilledError
        done.append(1)
        return step(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", dying)
        with pytest.raises(KilledError):
            TrainingRun(arguments_for(output)).start()


def work(rank, folder):
    """A run under DDP; then with sharded weights one update, the same run, and one that breaks off and goes on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accelerator, "end_training", lambda _: None)  # it ends the processes' connection
        PartialState(cpu=True)
        assert TrainingRun(arguments_for(folder / "ddp")).start()
        AcceleratorState._reset_state()
        pretend_gpus(patch)
        accelerator = Accelerator()
        prepare_sharding(accelerator)
        torch.save(train_sharded(rank, accelerator), folder / f"{rank}.pt")
        assert TrainingRun(arguments_for(folder / "whole")).start()
        train_and_die(folder / "broken", after=3)
        assert TrainingRun(arguments_for(folder / "broken")).start()
        PartialState().destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharding")
    run_processes(work, folder)
    return folder


@pytest.mark.parametrize("rank", [0, 1])
def test_sharded_weights_get_the_gradient_of_one_batch(folder, rank):
    expected = train_once([images((5, 0, 1, 2))], Accelerator(cpu=True))
    torch.testing.assert_close(torch.load(folder / f"{rank}.pt"), expected, atol=1e-12, rtol=1e-9)


def test_the_model_is_saved_whole_and_is_that_of_a_run_with_whole_weights(folder):
    model = DetrPanopticForSegmentation.from_pretrained(folder / "whole")
    expected = DetrPanopticForSegmentation.from_pretrained(folder / "ddp").state_dict()
    torch.testing.assert_close(model.state_dict(), expected, atol=1e-5, rtol=1e-4)


def test_a_run_goes_on_to_the_same_bits(folder):
    ours, theirs = (load_file(folder / name / "model.safetensors") for name in ("broken", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ours, theirs = ((folder / name / "metrics.jsonl").read_text().count('"loss"') for name in ("broken", "whole"))
    assert ours == theirs == STEPS


def test_other_ways_of_sharding_are_refused():
    accelerator = Accelerator(cpu=True)
    accelerator.state.distributed_type = DistributedType.DEEPSPEED
    with pytest.raises(CommandError, match="DEEPSPEED is not supported: take DDP"):
        prepare_sharding(accelerator)
