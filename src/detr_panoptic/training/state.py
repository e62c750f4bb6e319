"""What the steps of a training run share."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from .batches import Batches
from .data import TrainingData
from .settings import TrainingSettings
from .tracking import RunLog


@dataclass
class Progress:
    """Position of a run; part of every checkpoint.

    Args:
        step: Updates so far.
        epoch: Complete passes over the data.
        windows: Updates of the current pass.
        best: Best quality of an evaluation so far.
        evaluations_without_gain: Evaluations since then.
        metrics_bytes: Length of `metrics.jsonl`; a resumed run repeats what comes after.
        num_processes: Number of processes of the run.
        is_finished: Whether the run has ended regularly.
    """

    step: int = 0
    epoch: int = 0
    windows: int = 0
    best: float = float("-inf")
    evaluations_without_gain: int = 0
    metrics_bytes: int = 0
    num_processes: int = 1
    is_finished: bool = False

    def state_dict(self) -> dict[str, Any]:
        """Returns what Accelerate saves."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, value)


@dataclass
class TrainingState:
    """Everything that an update changes.

    Args:
        model: Prepared by the accelerator.
        whole: The same model without the accelerator's wrapper.
        optimizer: Prepared by the accelerator.
        schedule: Of the learning rates.
        averaged: Moving average of the weights, if there is one; it is evaluated and saved.
        progress: Position of the run.
    """

    model: nn.Module
    whole: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    averaged: AveragedModel | None
    progress: Progress

    @property
    def evaluated(self) -> Any:
        """The model that is evaluated and saved."""
        return self.whole if self.averaged is None else self.averaged.module


@dataclass(frozen=True)
class Run:
    """The parts of a run.

    Args:
        settings: Settings with a fixed batch size.
        folder: Output folder.
        accelerator: Knows the processes and the precision.
        data: Training and validation records.
        processor: Image processor of the model.
        batches: Training batches.
        loader: Their loader, prepared by the accelerator.
        state: What updates change.
        total_steps: Updates of the whole run.
        log: Receives losses and metrics.
    """

    settings: TrainingSettings
    folder: Path
    accelerator: Accelerator
    data: TrainingData
    processor: DetrPanopticImageProcessor
    batches: Batches
    loader: Any
    state: TrainingState
    total_steps: int
    log: RunLog
