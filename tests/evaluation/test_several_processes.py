"""`evaluate` in several processes and after a kill: the numbers are those of one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.evaluation import Evaluation, evaluate
from tests.process_team import team_environments

SCENES = 9  # an odd number: the shares differ; and so many that sums in another order have other bits
PATIENCE = 300  # seconds; the processes take 20 on a free core, most of it imports
CODE = """
import json, sys
from pathlib import Path
from detr_panoptic.evaluation import evaluate
from detr_panoptic.inference.predictor import processes
model, limit, result, *outputs = sys.argv[1:]
found = []
for output in outputs:
    evaluation = evaluate(model, "scenes", limit=int(limit), output=output or None, device="cpu", progress=False)
    found.append([evaluation.metrics, [example.pq for example in evaluation.worst]])
Path(result).write_text(json.dumps([processes().num_processes, *found]))
"""


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As the started processes have: another number of threads adds up in another order, and rounds otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone() -> Evaluation:
    return evaluate(BUNDLED, "scenes", limit=SCENES, device="cpu", progress=False)


def start(result: Path, *outputs: Path | str, **environment: str) -> subprocess.Popen:
    words = [str(BUNDLED), str(SCENES), str(result), *map(str, outputs)]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CODE, *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def test_two_processes_measure_what_one_measures(tmp_path, alone):
    """In memory and with files."""
    assert 0.1 < alone.ap["mask"]["ap"] < 0.9
    output, results = tmp_path / "out", [tmp_path / f"{rank}.json" for rank in range(2)]
    team = [
        start(result, "", output, **environment)
        for result, environment in zip(results, team_environments(), strict=True)
    ]
    for process in team:
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors.decode()
    expected = json.loads(json.dumps([alone.metrics, [example.pq for example in alone.worst]]))
    assert [json.loads(result.read_text()) for result in results] == [[2, expected, expected]] * 2
    assert json.loads((output / "metrics.json").read_text()) == expected[0]
    alone.save(tmp_path / "alone")
    assert (output / "report.html").read_bytes() == (tmp_path / "alone" / "report.html").read_bytes()


@pytest.mark.slow  # test_predictions_that_exist_are_used is the quick one
@pytest.mark.promise
def test_a_killed_run_continues_and_ends_the_same(tmp_path, alone):
    output = tmp_path / "out"
    process = start(tmp_path / "result.json", output)
    folder = output / "predictions" / "segments"
    deadline = time.monotonic() + PATIENCE
    while len(list(folder.glob("*.json"))) < 2:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert 2 <= len(done) < SCENES
    assert not (output / "metrics.json").exists()
    again = evaluate(BUNDLED, "scenes", limit=SCENES, output=output, device="cpu", progress=False)
    assert again.metrics == alone.metrics
    assert {path: path.stat().st_mtime_ns for path in done} == done
