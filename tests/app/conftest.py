"""A page that is served in this process, and a browser to look at it."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.app.limits import Limits
from detr_panoptic.commands.demo import UNSEEN_SEED, load_shipped_model
from detr_panoptic.scenes import make_scene

if find_spec("gradio") is None:  # the extra `demo`, which `dev` has
    collect_ignore_glob = ["test_*.py"]
LIMITS = Limits(max_upload_bytes=1_000_000, max_pixels=1_000_000, concurrency=1, queue=20, max_seconds=60)
BROWSER = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOSTILE = "<img src=x onerror=document.title='hurt'>${document.title='hurt'}{{#if value}}@children{{/if}}"


@pytest.fixture(scope="session")
def page_folder() -> Iterator[Path]:
    """Where all pages of this process keep their uploads: Gradio takes one folder."""
    from detr_panoptic.app.serving import private_folder

    with private_folder() as folder:
        yield folder


@contextmanager
def serving(application: Callable) -> Iterator[str]:
    """The address of an application that is served by a thread."""
    import uvicorn

    from detr_panoptic.app.serving import Server, listen

    started = threading.Event()
    server = Server(uvicorn.Config(application, log_level="warning", ws="none"), started.set)
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        assert started.wait(60)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


@contextmanager
def page_of(segment: Callable, limits: Limits, folder: Path) -> Iterator:
    """The guarded page of any function."""
    from detr_panoptic.app.answers import Content, Threshold
    from detr_panoptic.app.page import page_application

    content = Content(
        title="Test",
        introduction="",
        tasks={"panoptic": "", "semantic": ""},
        thresholds=[Threshold("threshold", "Least score", "", 0.5, ("panoptic",))],
        examples={},
        style="",
        script="function connect(root, data) {}\n",
    )
    with page_application(segment, content, limits, folder) as guard:
        yield guard


@pytest.fixture(scope="session")
def shipped() -> tuple[DetrPanopticForSegmentation, DetrPanopticImageProcessor]:
    return load_shipped_model()


@pytest.fixture(scope="session")
def page(shipped, page_folder) -> Iterator[str]:
    """The page of the model that ships."""
    from detr_panoptic.commands.page import application_for

    with application_for(*shipped, LIMITS, page_folder) as application, serving(application) as address:
        yield address


@pytest.fixture(scope="session")
def hostile_page(model_folder, page_folder) -> Iterator[str]:
    """The page of a tiny model whose classes have names that want to be code."""
    from detr_panoptic.commands.page import application_for

    model = DetrPanopticForSegmentation.from_pretrained(model_folder).eval()
    model.config.id2label = {label: f"{HOSTILE} {label}" for label in range(3)}
    processor = DetrPanopticImageProcessor.from_pretrained(model_folder)
    with application_for(model, processor, LIMITS, page_folder) as application, serving(application) as address:
        yield address


@pytest.fixture(scope="session")
def scene(tmp_path_factory) -> Path:
    """A picture that the shipped model has not seen, in a file whose name is hostile."""
    file = tmp_path_factory.mktemp("scenes") / "a scene <b> &amp; {{x}}.png"
    make_scene(UNSEEN_SEED + 3, height=224, width=320)["image"].save(file)
    return file


@pytest.fixture(scope="session")
def tiny_picture(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "tiny.png"
    Image.effect_noise((71, 53), 90).convert("RGB").save(file)
    return file


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator:
    """Chromium without a window; tests that want it skip without."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if BROWSER is None or DRIVER is None:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    downloads = tmp_path_factory.mktemp("downloads")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.downloads = downloads
    try:
        yield driver
    finally:
        driver.quit()
