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
    """Position of a run; part of every checkpoint."""

    step: int = 0  # updates
    epoch: int = 0  # complete passes over the data
    windows: int = 0  # updates of the current pass
    best: float = float("-inf")  # quality of an evaluation
    evaluations_without_gain: int = 0
    metrics_bytes: int = 0  # of `metrics.jsonl`; a resumed run repeats what comes after
    num_processes: int = 1
    is_finished: bool = False

    def state_dict(self) -> dict[str, Any]:
        """Returns what Accelerate saves."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, value)


@dataclass(frozen=True)
class Run:
    """The parts of a run."""

    settings: TrainingSettings  # with a fixed batch size
    accelerator: Accelerator
    data: TrainingData
    processor: DetrPanopticImageProcessor
    batches: Batches
    loader: Any  # of the batches, prepared by the accelerator
    model: nn.Module  # prepared by the accelerator
    optimizer: Optimizer
    schedule: LRScheduler
    averaged: AveragedModel | None  # moving average of the weights
    progress: Progress
    total_steps: int  # updates of the whole run
    log: RunLog

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(str(self.settings.run.output))

    @property
    def evaluated(self) -> Any:
        """The model that is evaluated and saved, without the accelerator's wrapper."""
        return self.accelerator.unwrap_model(self.model) if self.averaged is None else self.averaged.module
