"""Whole runs of `train`: what is written, and what resuming after any update gives."""

import itertools
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.data import read_panoptic, write_coco_panoptic_dataset
from detr_panoptic.evaluation import evaluate
from detr_panoptic.scenes import SCENE_CATEGORIES, scenes_dataset
from detr_panoptic.scenes.source import read_source
from detr_panoptic.training import loop
from detr_panoptic.training.data import Batches, read_data
from detr_panoptic.training.settings import DataSettings, resolve_settings
from tests.conftest import build_tiny
from tests.training.runs import LAST, SIDE, STEPS, assert_same_run, metrics_of, run, write_data


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The folder of a run that nothing has disturbed."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert run(output).is_finished
    return output


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("workers", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_neither_repeating_a_run_nor_the_number_of_workers_changes_a_bit(workers, whole_run, tmp_path):
    run(tmp_path, workers=workers)
    assert_same_run(tmp_path, whole_run)


# ------ resuming


class KilledError(BaseException):
    """No `except` of the package catches this."""


def run_and_die(monkeypatch, output, *, after, **settings):
    """A run that ends without a chance to clean up, before update number `after` + 1."""
    step, count = loop.train_step, itertools.count()

    def dying(*arguments, **options):
        if next(count) == after:
            raise KilledError
        return step(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", dying)
        with pytest.raises(KilledError):
            run(output, **settings)


@pytest.mark.parametrize(
    "after", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow)]
)
def test_a_run_that_dies_after_any_update_is_resumed_to_the_same_bits(after, whole_run, tmp_path, monkeypatch):
    run_and_die(monkeypatch, tmp_path, after=after)
    assert len(metrics_of(tmp_path)) == after + (after >= 3)  # updates, and the evaluation after the first epoch
    assert run(tmp_path).is_finished
    assert_same_run(tmp_path, whole_run)


@pytest.mark.slow
@pytest.mark.promise
def test_a_run_that_dies_between_the_end_of_an_epoch_and_its_evaluation_is_resumed(whole_run, tmp_path, monkeypatch):
    def dying(_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", dying)
        with pytest.raises(KilledError):
            run(tmp_path, checkpoint_every=3)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]
    run(tmp_path)
    assert_same_run(tmp_path, whole_run)


def test_a_run_that_dies_in_its_last_evaluation_does_no_further_update(tmp_path, monkeypatch):
    validate, count = loop.validate, itertools.count(1)

    def dying(state):
        if next(count) == 2:
            raise KilledError
        return validate(state)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", dying)
        with pytest.raises(KilledError):
            run(tmp_path, max_steps=4)
    assert (tmp_path / "checkpoints" / "step_00000004").is_dir()
    result = run(tmp_path, max_steps=4)
    assert (result.is_finished, result.steps) == (True, 4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_is_resumed_to_the_same_bits(number, whole_run, tmp_path, monkeypatch, caplog):
    """Ctrl-C is SIGINT."""
    step, count = loop.train_step, itertools.count(1)

    def signalled(*arguments, **options):
        if next(count) == 5:
            os.kill(os.getpid(), number)
        return step(*arguments, **options)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch, caplog.at_level("INFO"):
        patch.setattr(loop, "train_step", signalled)
        result = run(tmp_path)
    assert (result.is_finished, result.steps, result.stop_signal) == (False, 5, number)
    assert f"stopped after update 5; {tmp_path} can be resumed" in caplog.text
    assert "stopped; the same call resumes it" in str(result)
    assert signal.getsignal(number) is before
    assert run(tmp_path).stop_signal is None
    assert_same_run(tmp_path, whole_run)


def test_a_finished_run_that_is_started_again_does_nothing(whole_run, tmp_path, monkeypatch):
    shutil.copytree(whole_run, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(loop, "train_step", lambda *_, **__: pytest.fail("there is no update left"))
    result = run(tmp_path)
    assert (result.is_finished, result.steps, result.total_steps) == (True, STEPS, STEPS)
    assert_same_run(tmp_path, whole_run)


def test_a_run_is_resumed_with_another_tracker_but_not_with_another_rate(whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path, dirs_exist_ok=True)
    assert run(tmp_path, log_every=2, workers=1).is_finished
    with pytest.raises(ValueError, match=r"`learning_rate` 0.0002, not 0.0001, `epochs` 3, not 2.*`overwrite`"):
        run(tmp_path, learning_rate=2e-4, epochs=3)
    assert_same_run(tmp_path, whole_run)


def test_overwrite_starts_anew(whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path, dirs_exist_ok=True)
    run(tmp_path, overwrite=True, seed=1)
    assert len(metrics_of(tmp_path)) == STEPS + 2
    assert metrics_of(tmp_path)[0]["loss"] != metrics_of(whole_run)[0]["loss"]


def test_every_epoch_has_its_own_order_and_the_same_again():
    data = {"data": "scenes", "limit": 7, "short_side": SIDE, "long_side": SIDE, "workers": 0, "augmentation": "none"}
    settings = resolve_settings("none", overrides=data | {"batch_size": 1})
    batches = Batches(settings, read_data(settings.data, 0), DetrPanopticImageProcessor())
    orders = []
    for epoch in (0, 1, 0):
        batches.start_epoch(epoch)
        orders.append([int(batch["labels"][0]["image_id"]) for batch in batches.loader])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
    assert len(set(orders[0])) == 7
    # What is read before the first update has the same order, and no workers that would stay for the whole run.
    batches = Batches(settings.replace(workers=1), read_data(settings.data, 0), DetrPanopticImageProcessor())
    ids = [int(batch["labels"][0]["image_id"]) for batch in itertools.islice(batches.endless(), 14)]
    assert [ids[:7], ids[7:]] == orders[:2]
    assert not multiprocessing.active_children()


def test_images_grow_during_a_run(tmp_path, monkeypatch):
    step = loop.train_step
    sides: list[tuple[int, ...]] = []

    def watched(model, window, *args, **options):
        sides.extend(tuple(batch["pixel_values"].shape[-2:]) for batch in window)
        return step(model, window, *args, **options)

    monkeypatch.setattr(loop, "train_step", watched)
    settings = {"limit": 1, "gradient_accumulation_steps": 1, "epochs": 10, "evaluate_every": 10, "workers": 1}
    run(tmp_path, **settings, first_short_side=64, short_side=128, long_side=128)
    assert sides == [(64, 64)] * 6 + [(96, 96)] + [(128, 128)] * 3


def test_an_automatic_batch_size_keeps_the_images_per_update(whole_run, tmp_path, monkeypatch):
    """The largest batch that fits is accumulated to the update of one batch."""
    from detr_panoptic.training import optimization as module

    tried, update = [], module.update_once

    def too_large(probe, optimizer, inputs, accelerator):
        tried.append(len(inputs["labels"]))
        if len(inputs["labels"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        update(probe, optimizer, inputs, accelerator)

    monkeypatch.setattr(module, "update_once", too_large)
    automatic = {"batch_size": "auto", "gradient_accumulation_steps": None, "images_per_update": 2}
    result = run(tmp_path, **automatic)
    assert tried == [2, 1]
    optimization = result.settings.optimization
    assert (optimization.batch_size, optimization.gradient_accumulation_steps) == (1, 2)
    assert_same_run(tmp_path, whole_run)
    monkeypatch.setattr(module, "update_once", update)
    assert run(tmp_path / "roomy", **automatic, dry_run=True).settings.optimization.batch_size == 2


# ------ what is written


def test_checkpoints_are_whole_and_few(whole_run):
    names = sorted(path.name for path in (whole_run / "checkpoints").iterdir())
    assert names == [f"step_{STEPS:08d}", LAST]


def test_the_best_model_stays_and_a_run_without_gain_ends(tmp_path, monkeypatch):
    qualities, saved = iter([0.1, 0.3, 0.2, 0.25, 0.9]), []
    measure, publish = loop.panoptic_metrics, loop.publish

    def measured(*arguments):
        return measure(*arguments) | {"pq": next(qualities)}

    def publishing(run, model, pictures):
        saved.append({name: value.clone() for name, value in model.state_dict().items()})
        publish(run, model, pictures)

    monkeypatch.setattr(loop, "panoptic_metrics", measured)
    monkeypatch.setattr(loop, "publish", publishing)
    result = run(tmp_path, epochs=9, patience=2)
    assert (result.is_finished, result.steps, result.metrics["pq"]) == (True, 12, 0.3)
    assert len(saved) == 2
    kept = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(kept[name], saved[1][name]) for name in kept)
    assert [line["pq"] for line in metrics_of(tmp_path) if "pq" in line] == [0.1, 0.3, 0.2, 0.25]


def test_the_output_folder_is_a_model_with_its_card_and_curves(whole_run):
    model = DetrPanopticForSegmentation.from_pretrained(whole_run)
    averaged = torch.load(whole_run / "checkpoints" / LAST / "custom_checkpoint_2.pkl", weights_only=True)
    weights = model.state_dict()
    assert all(torch.equal(weights[name], averaged[f"module.{name}"]) for name in weights)
    assert DetrPanopticImageProcessor.from_pretrained(whole_run).stuff_label_ids == model.config.stuff_label_ids
    card = (whole_run / "README.md").read_text()
    metadata: Any = ModelCard(card).data
    for part in ("pipeline_tag: image-segmentation", "5 images", "steps: 6 updates of 2 images"):
        assert part in card
    for picture in ("validation.png", "training_curves.png"):
        with Image.open(whole_run / picture) as opened:
            assert min(opened.size) > 100
    assert "validation.png" in card
    results = {result.metric_name: result for result in metadata.eval_results}
    assert results["PQ"].dataset_name == "generated scenes that are not trained on"
    assert results["PQ"].metric_value == 0


def test_the_quality_of_a_run_is_that_of_evaluate_with_its_defaults(tmp_path):
    data = write_data(tmp_path / "data", count=3)
    settings = {"model": BUNDLED, "max_steps": 1, "learning_rate": 1e-6, "short_side": 192, "long_side": 256}
    result = run(tmp_path / "run", data=data, ema_decay=None, batch_size=2, **settings)
    measured = evaluate(result.model_folder, data, progress=False)
    assert 0.1 < result.metrics["pq"] == pytest.approx(measured.pq, abs=1e-6)
    assert result.metrics["pq_things"] == pytest.approx(measured.things.pq, abs=1e-6)
    assert f"PQ {100 * measured.pq:.1f}" in str(result)
    card = (result.model_folder / "README.md").read_text()
    assert re.search(rf"\| all +\| +{100 * measured.pq:.1f} \|", card)
    assert "on **training images** of data, 3 images" in card


def test_descriptions_of_data_name_no_folder_of_this_machine(tmp_path):
    folder = tmp_path / "secret" / "photos"
    write_coco_panoptic_dataset(folder, scenes_dataset(2, height=64, width=96), SCENE_CATEGORIES)
    words = read_data(DataSettings(data=str(folder), validation_data=str(folder)), 0).describe()
    assert words["training"].startswith("photos: 2 images")
    assert words["validation"] == "2 images, photos"


def test_data_in_memory_train_as_those_on_disk(tmp_path):
    write_coco_panoptic_dataset(tmp_path / "data", scenes_dataset(3, height=64, width=64), SCENE_CATEGORIES)
    data = read_panoptic(tmp_path / "data")
    settings = {"max_steps": 2, "augmentation": "none"}
    run(tmp_path / "named", data=str(tmp_path / "data"), validation_data=tmp_path / "data", **settings)
    run(tmp_path / "in_memory", data=None, source=data, validation_data=data, **settings)
    assert metrics_of(tmp_path / "named") == metrics_of(tmp_path / "in_memory")
    scenes = read_source("scenes", limit=2, scene_side=SIDE)
    assert run(tmp_path / "scenes", data=None, source=scenes, dry_run=True).total_steps == 2


def test_metrics_hold_every_layer_errors_and_classes(whole_run):
    update, evaluation = metrics_of(whole_run)[-2:]
    for name in ("loss_ce", "loss_ce_0", "loss_giou_0", "loss_mask", "class_error", "cardinality_error"):
        assert update[name] >= 0, name
    assert update["gradient_norm"] > 0
    assert 0 <= evaluation["pq"] <= 1
    classes = {name.removeprefix("pq/") for name in evaluation if name.startswith("pq/")}
    assert {"sky"} < classes <= set(SCENE_CATEGORIES.names)


def test_trackers_receive_the_numbers_and_the_pictures(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tmp_path, tracker="tensorboard", epochs=1)
    (folder,) = {path.parent for path in (tmp_path / "tracking" / "detr-panoptic").glob("events*")}
    events = accumulator.EventAccumulator(str(folder)).Reload()
    tags = events.Tags()
    expected = {"loss_ce_0", "gradient_norm", "class_error", "cardinality_error", "rate", "pq", "pq/sky"}
    assert expected <= set(tags["scalars"])
    losses = [line["loss"] for line in metrics_of(tmp_path) if "loss" in line]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses, rel=1e-5)
    assert [tag.split("/")[1] for tag in sorted(tags["images"])] == ["0", "1", "2", "3"]


def test_a_dry_run_describes_the_plan_and_writes_nothing(tmp_path):
    output = tmp_path / "run"
    result = run(output, dry_run=True, rate_scaling="sqrt", reference_batch=8, aids=True)
    text = str(result)
    for part in ("5 images, ", "6 updates of 2 images, 3 per epoch", "0.0001 x sqrt(2/8) = 5e-05", "with aids"):
        assert part in text
    assert (result.total_steps, result.steps, result.is_finished) == (6, 0, False)
    assert "with aids" not in str(run(output, dry_run=True, aids=True, stage="boxes"))
    assert "backbone: frozen" in str(run(output, dry_run=True, freeze_backbone=True))
    assert not output.exists()


def test_the_aids_are_in_no_saved_model(tmp_path):
    run(tmp_path, aids=True, epochs=1)
    assert metrics_of(tmp_path)[0]["loss_cell_ce"] > 0
    assert not any("aids" in name for name in load_file(tmp_path / "model.safetensors"))


def test_pq_of_training_images_changes_nothing_else(whole_run, tmp_path):
    run(tmp_path, evaluate_training=3)
    lines = [{k: v for k, v in line.items() if not k.startswith("training_pq")} for line in metrics_of(tmp_path)]
    assert lines == metrics_of(whole_run)
    assert {"training_pq", "training_pq_things", "training_pq_stuff"} <= metrics_of(tmp_path)[-1].keys()


def test_stages_train_one_after_the_other(tmp_path):
    run(tmp_path / "boxes", stage="boxes", ema_decay=None)
    lines = metrics_of(tmp_path / "boxes")
    assert all("loss_mask" not in line and "pq" not in line for line in lines)
    evaluated = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert len(evaluated) == 2
    run(tmp_path / "masks", model=tmp_path / "boxes", stage="masks", ema_decay=None, epochs=1)
    boxes, masks = (load_file(tmp_path / name / "model.safetensors") for name in ("boxes", "masks"))
    moved = {name for name in boxes if not torch.equal(boxes[name], masks[name])}
    assert moved
    assert {name.split(".")[0] for name in moved} == {"mask_head", "mask_attention"}


def test_runs_of_different_precision_follow_each_other_in_one_process(tmp_path):
    run(tmp_path / "a", max_steps=1)
    run(tmp_path / "b", max_steps=1, mixed_precision="bf16")
    a, b = metrics_of(tmp_path / "a")[0], metrics_of(tmp_path / "b")[0]
    assert a["loss"] == pytest.approx(b["loss"], rel=0.05)
    assert a["loss"] != b["loss"]


# ------ a folder that cannot be written


def test_a_full_disk_loses_nothing_that_was_saved(whole_run, tmp_path, monkeypatch):
    """Files of this process may not grow beyond a size, as on a disk without room."""
    run_and_die(monkeypatch, tmp_path, after=3)  # the last checkpoint is that of the third update
    before = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="The checkpoint of step 4 could not be written"):
            run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == before
    run(tmp_path)
    assert_same_run(tmp_path, whole_run)


HOLDER = """
import fcntl, sys, time
with open(sys.argv[1] + "/.lock", "w") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_runs_in_one_folder_are_refused(tmp_path):
    """A lock belongs to a process: another one holds it here, and loses it when it is killed."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(ValueError, match="belongs to another run"):
                run(tmp_path)
        finally:
            holder.kill()
    run(tmp_path, max_steps=1)


def test_a_folder_with_another_model_is_left_alone(tmp_path):
    build_tiny().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a config\.json that no training wrote"):
        run(tmp_path)


def test_a_readme_that_no_training_wrote_is_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(ValueError, match=r"holds a README\.md that no training wrote"):
        run(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my project"
