"""What holds on a processor holds on a CUDA device: `pytest -m gpu`."""

import copy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from transformers import BatchFeature, pipeline

from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.inference import load
from detr_panoptic.inference.cuda_graphs import CudaGraphs
from detr_panoptic.mask_head import CHUNK_BYTES
from detr_panoptic.scenes import make_scene
from detr_panoptic.training.aids import attach_training_aids
from tests.conftest import build_tiny, photo

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
SCENES = range(900, 904)
TRAIN = str(Path(__file__).parents[1] / "scripts" / "train.py")


@pytest.fixture(autouse=True)
def _exact_products():
    """Convolutions in float32 as on a processor, not in TF32."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


def on_device(value):
    if isinstance(value, torch.Tensor):
        return value.cuda()
    if isinstance(value, dict):
        return {name: on_device(part) for name, part in value.items()}
    return [on_device(part) for part in value]


def test_predictions_are_those_of_the_processor(tiny_batch):
    model = build_tiny().eval()
    images = {name: tiny_batch[name] for name in ("pixel_values", "pixel_mask")}
    with torch.inference_mode():
        expected = model(**images, mask_queries="all")
        found = model.cuda()(**on_device(images), mask_queries="all")
    for name in ("logits", "pred_boxes", "pred_masks"):
        torch.testing.assert_close(found[name].cpu(), expected[name], atol=1e-4, rtol=1e-4)


def test_labels_that_stay_on_the_cpu_are_moved(tiny_batch):
    """`BatchFeature.to` moves tensors, but no lists of them."""
    model = build_tiny().train()
    expected = model(**tiny_batch).loss
    batch = BatchFeature(tiny_batch).to("cuda")
    assert batch["labels"][0]["boxes"].device.type == "cpu"
    torch.testing.assert_close(model.cuda()(**batch).loss.cpu(), expected, atol=1e-3, rtol=1e-4)


def test_chunks_of_rows_change_nothing(tiny_batch, monkeypatch):
    model = build_tiny().eval().cuda()
    images = on_device({name: tiny_batch[name] for name in ("pixel_values", "pixel_mask")})
    with torch.inference_mode():
        whole = model(**images, mask_queries="all").pred_masks
        monkeypatch.setitem(CHUNK_BYTES, "cuda", 1)
        chunked = model(**images, mask_queries="all").pred_masks
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-5)


def test_losses_and_gradients_are_those_of_the_processor(tiny_batch):
    results = []
    for move in (lambda value: value, on_device):
        model = build_tiny().double().train()
        attach_training_aids(model)
        model = model.double()
        batch = move({**tiny_batch, "pixel_values": tiny_batch["pixel_values"].double()})
        model = model.cuda() if move is on_device else model
        output = model(**batch)
        output.loss.backward()
        gradients = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
        results.append(({name: term.cpu() for name, term in output.loss_dict.items()}, gradients))
    # Class weights are sums in float32, whatever the model's precision.
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(results[1][1], results[0][1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_finds_nearly_the_same_segments(dtype):
    model, processor = load(BUNDLED, device="cpu")
    images = [make_scene(seed)["image"] for seed in SCENES]
    inputs = processor(images, return_tensors="pt")
    maps = []
    with torch.inference_mode():
        for kind in (torch.float32, dtype):
            own = copy.deepcopy(model).to("cuda", kind)
            output = own(**inputs.to("cuda", kind))
            results = processor.post_process_panoptic_segmentation(output, target_sizes=[(256, 256)] * len(images))
            labels = []
            for result in results:
                table = torch.full((len(result["segments_info"]) + 1,), -1)
                for segment in result["segments_info"]:
                    table[segment["id"]] = segment["label_id"]
                labels.append(table[result["segmentation"].cpu().long()])
            maps.append(torch.stack(labels))
    assert (maps[0] >= 0).float().mean() > 0.8
    assert (maps[0] == maps[1]).float().mean() > 0.95


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # torch 2.11 advises to give up exact products
def test_the_compiled_model_gives_the_same():
    model = build_tiny(mask_queries=3).eval().cuda()
    pixels = torch.randn(2, 3, 64, 96, device="cuda")
    with torch.inference_mode():
        expected = model(pixels)
        found = torch.compile(model)(pixels)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.pred_masks, expected.pred_masks, atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_captured_graphs_give_the_same_at_every_shape():
    model = build_tiny().eval().cuda()
    graphs = CudaGraphs(model)
    for width in (96, 64, 96):
        pixels = torch.randn(2, 3, 64, width, device="cuda")
        for mask_queries in (None, 3, "all"):
            expected = model(pixels, mask_queries=mask_queries)
            found = graphs(pixels, mask_queries=mask_queries)
            torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
            kept = expected.logits.argmax(-1) != expected.logits.shape[-1] - 1
            torch.testing.assert_close(found.pred_masks[kept], expected.pred_masks[kept], atol=1e-4, rtol=1e-4)


@pytest.fixture
def waits():
    """Warnings about waits for the device, which PyTorch gives."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: sum("synchronizing" in str(warning.message) for warning in caught)
    torch.cuda.set_sync_debug_mode("default")


def test_a_forward_waits_for_nothing(waits):
    model, pixels = build_tiny().eval().cuda(), torch.zeros(1, 3, 64, 96).pin_memory().cuda(non_blocking=True)
    with torch.inference_mode():
        model(pixels, mask_queries=2)
        before = waits()
        model(pixels, mask_queries=2)
    assert waits() == before


def test_a_training_step_waits_four_times_at_most(tiny_batch, waits):
    model = build_tiny().train().cuda()
    batch = on_device(tiny_batch)
    model(**batch).loss.backward()
    before = waits()
    model(**batch).loss.backward()
    assert waits() - before <= 3  # and once more in the loop, for whether all is finite


def test_the_pipeline_runs_there_in_batches():
    images = [photo((71, 53), seed=1), make_scene(901)["image"], make_scene(902)["image"]]
    results = [
        pipeline("image-segmentation", model=str(BUNDLED), device=device)(images, batch_size=2)
        for device in ("cpu", "cuda:0")
    ]
    for expected, found in zip(*results, strict=True):
        assert [segment["label"] for segment in found] == [segment["label"] for segment in expected]
        for one, other in zip(found, expected, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=5e-3)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_training_runs_in_every_precision_and_goes_on(tmp_path, precision):
    flags = [
        "--recipe",
        "none",
        "--data",
        "scenes",
        "--limit",
        "6",
        "--short-side",
        "64",
        "--long-side",
        "64",
        "--augmentation",
        "flip",
    ]
    flags += ["--backbone", "test_resnet", "--hidden-size", "32", "--num-heads", "4", "--ffn-dim", "48", "--aids"]
    flags += ["--mixed-precision", precision, "--epochs", "2", "--workers", "0", "--output", str(tmp_path / "model")]
    for _ in range(2):  # the second finds the run finished: nothing is left to do, and nothing is lost
        # A process of its own: Accelerate fixes the precision of a process.
        run = subprocess.run([sys.executable, TRAIN, *flags], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        assert (tmp_path / "model" / "model.safetensors").is_file()
