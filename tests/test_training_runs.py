"""Whole runs of `detr-panoptic train`: what is written, going on after any update, and what is refused."""

import errno
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from datasets import Dataset
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.cli import main
from detr_panoptic.data import write_coco_panoptic_dataset
from detr_panoptic.scenes import SCENE_CATEGORIES, scenes_dataset
from detr_panoptic.training import loop
from detr_panoptic.training import run as training_run
from detr_panoptic.training.arguments import DataArguments, TrainingArguments
from detr_panoptic.training.setup import build_batches, read_data
from tests.conftest import build_tiny

SIDE = 64
SETTINGS = {
    "data": "scenes",
    "limit": 5,
    "short-side": SIDE,
    "long-side": SIDE,
    "augmentation": "flip",
    "workers": 0,
    "batch-size": 1,
    "gradient-accumulation-steps": 2,
    "epochs": 2,
    "log-every": 1,
    "checkpoint-every": 2,
    "ema-decay": 0.9,
}
ARCHITECTURE = {
    "backbone": "test_resnet",
    "hidden-size": 32,
    "num-heads": 4,
    "encoder-layers": 1,
    "decoder-layers": 2,
    "ffn-dim": 32,
    "num-queries": 12,
}
STEPS = 6  # 5 images, 2 per update: 3 updates in each of 2 passes
LAST = f"step_{STEPS:08d}_epoch_2"


def train(output, *flags, **settings):
    """Exit code of the program; None leaves a setting out."""
    options = SETTINGS | ({} if "model" in settings else ARCHITECTURE)
    options |= {name.replace("_", "-"): value for name, value in settings.items()}
    words = [(f"--{name}", str(value)) for name, value in options.items() if value is not None]
    return main(["train", "--output", str(output), *itertools.chain.from_iterable(words), *flags])


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state()
    PartialState._reset_state()


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The folder of a run that nothing has disturbed."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert train(output) == 0
    return output


def only_line(capsys):
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1, lines
    return lines[0]


def metrics_of(output):
    """The lines of a run without what its speed decides."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "memory_gib")} for line in lines]


def assert_same_run(output, expected):
    for name in ("model.safetensors", f"checkpoints/{LAST}/model.safetensors"):
        ours, theirs = load_file(output / name), load_file(expected / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    assert metrics_of(output) == metrics_of(expected)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_neither_to_repeat_a_run_nor_the_number_of_workers_changes_a_bit(workers, whole_run, tmp_path):
    assert train(tmp_path, workers=workers) == 0
    assert_same_run(tmp_path, whole_run)


# ------ going on


class KilledError(BaseException):
    """No `except` of the program sees this."""


def train_and_die(monkeypatch, output, *, after, **settings):
    """A run that ends without a chance to clean up, before update number `after` + 1."""
    step, count = loop.train_step, itertools.count()

    def dying(*arguments, **options):
        if next(count) == after:
            raise KilledError
        return step(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", dying)
        with pytest.raises(KilledError):
            train(output, **settings)


@pytest.mark.parametrize("after", range(1, STEPS))
def test_a_run_that_dies_after_any_update_goes_on_to_the_same_bits(after, whole_run, tmp_path, monkeypatch):
    train_and_die(monkeypatch, tmp_path, after=after)
    assert len(metrics_of(tmp_path)) == after + (after >= 3)  # updates, and the evaluation after the first pass
    assert train(tmp_path) == 0
    assert_same_run(tmp_path, whole_run)


def test_a_run_that_dies_between_the_last_update_of_a_pass_and_its_evaluation_goes_on(
    whole_run, tmp_path, monkeypatch
):
    def dying(*_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(training_run.TrainingRun, "_measure", dying)
        with pytest.raises(KilledError):
            train(tmp_path, checkpoint_every=3)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]
    assert train(tmp_path) == 0
    assert_same_run(tmp_path, whole_run)


def test_a_finished_run_that_is_started_again_does_nothing(whole_run, tmp_path, monkeypatch):
    shutil.copytree(whole_run, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(loop, "train_step", lambda *_, **__: pytest.fail("there is no update left"))
    assert train(tmp_path) == 0
    assert_same_run(tmp_path, whole_run)


def test_a_run_goes_on_with_another_tracker_but_not_with_another_rate(whole_run, tmp_path, capsys):
    shutil.copytree(whole_run, tmp_path, dirs_exist_ok=True)
    assert train(tmp_path, log_every=2, workers=1) == 0
    capsys.readouterr()
    assert train(tmp_path, learning_rate=2e-4, epochs=3) == 2
    line = only_line(capsys)
    assert "`learning_rate` 0.0002, not 0.0001, `epochs` 3, not 2" in line
    assert "--overwrite" in line
    assert_same_run(tmp_path, whole_run)


def test_overwrite_starts_anew(whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path, dirs_exist_ok=True)
    assert train(tmp_path, "--overwrite", seed=1) == 0
    assert len(metrics_of(tmp_path)) == STEPS + 2
    assert metrics_of(tmp_path)[0]["loss"] != metrics_of(whole_run)[0]["loss"]


def test_every_epoch_has_its_own_order_and_the_same_again():
    data = {"data": "scenes", "limit": 7, "short_side": SIDE, "long_side": SIDE, "workers": 0, "augmentation": "none"}
    arguments = TrainingArguments.from_dict({"data": data, "optimization": {"batch_size": 1}})
    batches = build_batches(arguments, read_data(arguments.data, 0), DetrPanopticImageProcessor())
    orders = []
    for epoch in (0, 1, 0):
        batches.start_epoch(epoch)
        orders.append([int(batch["labels"][0]["image_id"]) for batch in batches.loader])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
    assert len(set(orders[0])) == 7


# ------ what is written


def test_checkpoints_are_whole_and_few(whole_run):
    names = sorted(path.name for path in (whole_run / "checkpoints").iterdir())
    assert names == [f"step_{STEPS:08d}", LAST]


def test_the_best_model_stays_and_a_run_without_gain_ends(tmp_path, monkeypatch):
    qualities = iter([0.1, 0.3, 0.2, 0.25, 0.9])
    saved = []
    measure = training_run.TrainingRun._measure
    publish = training_run.TrainingRun._publish

    def measured(self, model, share):
        metrics, _ = measure(self, model, share)
        quality = next(qualities)
        return metrics | {"pq": quality}, quality

    def publishing(self, model, pictures):
        saved.append({name: value.clone() for name, value in model.state_dict().items()})
        publish(self, model, pictures)

    monkeypatch.setattr(training_run.TrainingRun, "_measure", measured)
    monkeypatch.setattr(training_run.TrainingRun, "_publish", publishing)
    assert train(tmp_path, epochs=9, patience=2) == 0
    assert len(saved) == 2
    kept = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(kept[name], saved[1][name]) for name in kept)
    assert [line["pq"] for line in metrics_of(tmp_path) if "pq" in line] == [0.1, 0.3, 0.2, 0.25]
    assert "| 6 (best) | 2 | 30.0 |" in (tmp_path / "training_summary.md").read_text()


def test_the_output_folder_is_a_model_with_its_card_and_curves(whole_run):
    model = DetrPanopticForSegmentation.from_pretrained(whole_run)
    averaged = torch.load(whole_run / "checkpoints" / LAST / "custom_checkpoint_2.pkl", weights_only=True)
    weights = model.state_dict()
    assert all(torch.equal(weights[name], averaged[f"module.{name}"]) for name in weights)
    assert DetrPanopticImageProcessor.from_pretrained(whole_run).stuff_label_ids == model.config.stuff_label_ids
    card = (whole_run / "README.md").read_text()
    assert "{{" not in card
    for part in ("pipeline_tag: image-segmentation", "5 images", "steps: 6 updates of 2 images", "| all | 0.0 |"):
        assert part in card
    for picture in ("validation.png", "training_curves.png"):
        with Image.open(whole_run / picture) as opened:
            assert min(opened.size) > 100
    assert "validation.png" in card
    results = {result.metric_name: result for result in ModelCard(card).data.eval_results}
    assert results["PQ"].dataset_name == "generated scenes that are not learned"
    assert results["PQ"].metric_value == 0


def test_what_a_card_says_of_data_names_no_folder_of_this_machine(tmp_path):
    folder = tmp_path / "secret" / "photos"
    write_coco_panoptic_dataset(folder, scenes_dataset(2, height=64, width=96), SCENE_CATEGORIES)
    data = read_data(DataArguments(data=str(folder), validation_data=str(folder)), 0)
    words = data.describe()
    assert words["training"].startswith("photos: 2 images")
    assert words["validation"] == "2 images, photos"


def test_metrics_hold_every_layer_errors_and_classes(whole_run):
    update, evaluation = metrics_of(whole_run)[-2:]
    for name in ("loss_ce", "loss_ce_0", "loss_giou_0", "loss_mask", "class_error", "cardinality_error"):
        assert update[name] >= 0, name
    assert update["gradient_norm"] > 0
    assert 0 <= evaluation["pq"] <= 1
    classes = {name.removeprefix("pq/") for name in evaluation if name.startswith("pq/")}
    assert {"sky"} < classes <= set(SCENE_CATEGORIES.names)


def test_trackers_get_the_numbers_and_the_pictures(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert train(tmp_path, tracker="tensorboard", epochs=1) == 0
    (folder,) = {path.parent for path in (tmp_path / "tracking" / "detr-panoptic").glob("events*")}
    events = accumulator.EventAccumulator(str(folder)).Reload()
    tags = events.Tags()
    expected = {"loss_ce_0", "gradient_norm", "class_error", "cardinality_error", "rate", "pq", "pq/sky"}
    assert expected <= set(tags["scalars"])
    losses = [line["loss"] for line in metrics_of(tmp_path) if "loss" in line]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses, rel=1e-5)
    assert [tag.split("/")[1] for tag in sorted(tags["images"])] == ["0", "1", "2", "3"]


def test_a_plan_writes_nothing(tmp_path, capsys):
    output = tmp_path / "run"
    assert train(output, "--dry-run", rate_scaling="sqrt", reference_batch=8) == 0
    text = capsys.readouterr().out
    for part in ("5 images, ", "6 updates of 2 images, 3 per epoch", "0.0001 x sqrt(2/8) = 5e-05", "GiB", "mask head"):
        assert part in text
    assert not output.exists()


def test_the_aids_are_in_the_plan_and_in_no_saved_model(tmp_path, capsys):
    assert train(tmp_path, "--aids", "--dry-run") == 0
    assert "aids, not saved" in capsys.readouterr().out
    assert train(tmp_path, "--aids", "--stage", "boxes", "--dry-run") == 0
    assert "aids, not saved" not in capsys.readouterr().out
    assert train(tmp_path, "--aids", epochs=1) == 0
    assert metrics_of(tmp_path)[0]["loss_cell_ce"] > 0
    assert not any("aids" in name for name in load_file(tmp_path / "model.safetensors"))


def test_pq_of_training_images_is_measured_where_it_is_asked_for(whole_run, tmp_path, monkeypatch):
    """Beside that of the others; what is learned, and which model is the best, stay as they are."""
    measured = []
    measure = training_run.evaluate_model

    def measuring(model, processor, records, *arguments, **options):
        measured.append([record["image_id"] for record in records])
        return measure(model, processor, records, *arguments, **options)

    monkeypatch.setattr(training_run, "evaluate_model", measuring)
    assert train(tmp_path, evaluate_training=3) == 0
    validation, training = measured[:2]
    assert len(training) == 3
    assert not set(training) & set(validation)
    lines = [{k: v for k, v in line.items() if not k.startswith("training_pq")} for line in metrics_of(tmp_path)]
    assert lines == metrics_of(whole_run)
    assert {"training_pq", "training_pq_things", "training_pq_stuff"} <= metrics_of(tmp_path)[-1].keys()
    assert "PQ of training images" in (tmp_path / "training_summary.md").read_text()
    assert "PQ of training images" not in (whole_run / "training_summary.md").read_text()


def test_a_plan_says_that_the_backbone_stays_as_it_is(tmp_path, capsys):
    assert train(tmp_path / "run", "--dry-run", "--freeze-backbone") == 0
    assert "backbone: stays as it is" in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 3, 7])
def test_processes_share_what_is_measured(count):
    """Fewer images than processes are no reason to fail."""
    records = Dataset.from_dict({"image_id": list(range(count))})
    shares = [
        training_run.share_of(records, SimpleNamespace(process_index=rank, num_processes=3))["image_id"]
        for rank in range(3)
    ]
    assert sorted(itertools.chain.from_iterable(shares)) == list(range(count))


def test_stages_train_one_after_the_other(tmp_path):
    assert train(tmp_path / "boxes", stage="boxes", ema_decay=None) == 0
    lines = metrics_of(tmp_path / "boxes")
    assert all("loss_mask" not in line and "pq" not in line for line in lines)
    evaluated = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert len(evaluated) == 2
    assert train(tmp_path / "masks", model=tmp_path / "boxes", stage="masks", ema_decay=None, epochs=1) == 0
    boxes, masks = (load_file(tmp_path / name / "model.safetensors") for name in ("boxes", "masks"))
    moved = {name for name in boxes if not torch.equal(boxes[name], masks[name])}
    assert moved
    assert {name.split(".")[0] for name in moved} == {"mask_head", "mask_attention"}


# ------ a folder that cannot be written


def test_a_full_disk_loses_nothing_that_was_saved(whole_run, tmp_path, monkeypatch, capsys):
    """Files of this process may not grow beyond a size, as on a disk without room."""
    train_and_die(monkeypatch, tmp_path, after=3)  # the last checkpoint is that of the third update
    before = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    capsys.readouterr()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        assert train(tmp_path) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"The checkpoint of step 4 could not be written to {tmp_path}" in only_line(capsys)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == before
    assert train(tmp_path) == 0
    assert_same_run(tmp_path, whole_run)


HOLDER = """
import fcntl, sys, time
with open(sys.argv[1] + "/.lock", "w") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_runs_in_one_folder_are_refused(tmp_path, capsys):
    """A lock belongs to a process: another one holds it here, and loses it when it is killed."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            assert train(tmp_path) == 2
            assert "belongs to another run that is still going on" in only_line(capsys)
        finally:
            holder.kill()
    assert train(tmp_path, epochs=1) == 0


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="gives up the rights of root for a moment")
def test_a_read_only_output_folder_is_named(tmp_path, capsys):
    tmp_path.chmod(0o555)
    os.seteuid(65534)
    try:
        assert train(tmp_path / "run") == 2
    finally:
        os.seteuid(0)
    assert only_line(capsys).endswith(os.strerror(errno.EACCES))


def test_a_folder_with_another_model_is_left_alone(tmp_path, capsys):
    build_tiny().save_pretrained(tmp_path)
    capsys.readouterr()
    assert train(tmp_path) == 2
    assert "holds a model that is no run of this command" in only_line(capsys)
