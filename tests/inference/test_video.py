"""Videos: things keep their ids, and files that are broken, cut or interrupted say so."""

import functools
import http.server
import json
import struct
import threading
from contextlib import closing

import av
import numpy as np
import pytest
from PIL import Image

from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.inference import Prediction, Predictor, Segment
from detr_panoptic.inference.video import Tracking, Video, is_video
from detr_panoptic.scenes import make_scene

SIDE, STEP, COUNT = 128, 6, 8
PERSON, SKY = 0, 1


def write_clip(path, pictures, *, options=None):
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def pictures():
    """A camera that turns to the right."""
    scene = make_scene(11, height=SIDE, width=2 * SIDE)["image"]
    return [scene.crop((STEP * k, 0, STEP * k + SIDE, SIDE)) for k in range(COUNT)]


@pytest.fixture(scope="module")
def clip(pictures, tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("video") / "clip.mp4", pictures)


@pytest.fixture(scope="module")
def predictor():
    return Predictor.from_pretrained(BUNDLED, device="cpu")


def squares(*corners, stuff=True):
    """Returns a prediction of 100 x 100 pixels with a person of 20 pixels at each corner (x, y), over sky."""
    segmentation = np.full((100, 100), len(corners) + 1 if stuff else 0, dtype=np.int32)
    segments = []
    for number, (x, y) in enumerate(corners, start=1):
        segmentation[y : y + 20, x : x + 20] = number
        segments.append(Segment(number, PERSON, "person", 0.9, True, 400, (x, y, 20, 20), PERSON))
    if stuff:
        area = int((segmentation == len(corners) + 1).sum())
        segments.append(Segment(len(corners) + 1, SKY, "sky", 0.9, False, area, (0, 0, 100, 100), SKY))
    return Prediction(Image.new("RGB", (100, 100)), segmentation, segments, {PERSON: "person", SKY: "sky"})


def test_ids_last_whatever_the_order_of_the_segments():
    tracking = Tracking(10)
    first = tracking.follow(squares((0, 0), (60, 60)))
    second = tracking.follow(squares((58, 60), (3, 0)))  # in another order
    third = tracking.follow(squares((6, 0), (56, 60)))
    left = [p.segmentation[10, 12] for p in (first, second, third)]
    right = [p.segmentation[70, 70] for p in (first, second, third)]
    sky = [p.segmentation[50, 5] for p in (first, second, third)]
    assert len({*left}) == len({*right}) == len({*sky}) == 1
    assert len({left[0], right[0], sky[0]}) == 3
    for prediction in (first, second, third):
        assert {s.id for s in prediction.segments} == set(np.unique(prediction.segmentation))
    colors = [p.draw(show_labels=False).getpixel((10, 10)) for p in (first, second, third)]
    assert len(set(colors)) == 1
    assert tracking.num_things == {"person": 2}


def test_a_thing_that_was_hidden_keeps_its_id_and_a_new_one_gets_another():
    tracking = Tracking(10)
    ids = [tracking.follow(p).segmentation[10, 10] for p in (squares((0, 0)), squares((0, 0)))]
    hidden = [tracking.follow(squares()) for _ in range(3)]
    back = tracking.follow(squares((0, 0), (60, 60)))
    assert ids[0] == ids[1] == back.segmentation[10, 10]
    assert back.segmentation[70, 70] not in {*ids, 0, hidden[0].segmentation[10, 10]}


def test_frames_come_with_number_time_and_prediction(predictor, clip):
    frames = list(predictor.video(clip, every=3))
    assert [frame.number for frame, _ in frames] == [0, 3, 6]
    assert [frame.seconds for frame, _ in frames] == pytest.approx([0, 0.3, 0.6])
    alone = predictor(frames[0][0].image)
    assert [s.label for s in frames[0][1].segments] == [s.label for s in alone.segments]
    stuff = [{s.label: s.id for s in prediction.segments if not s.is_thing} for _, prediction in frames]
    assert all(stuff[0][name] == other[name] for other in stuff for name in stuff[0].keys() & other.keys())


def test_a_drawn_video_and_the_segments_of_each_frame_are_written(predictor, clip, tmp_path):
    result = predictor.predict_video(clip, tmp_path, every=2, progress=False)
    assert result.num_frames == 4
    with av.open(str(tmp_path / "clip.mp4")) as container:
        drawn = list(container.decode(video=0))
    assert [round(float(frame.time), 3) for frame in drawn] == [0, 0.2, 0.4, 0.6]
    assert (drawn[0].width, drawn[0].height) == (SIDE, SIDE)
    contents = [json.loads(path.read_text()) for path in sorted((tmp_path / "clip").glob("*.json"))]
    assert [content["frame"] for content in contents] == [0, 2, 4, 6]
    assert all((tmp_path / "clip" / content["segmentation"]).is_file() for content in contents)
    with pytest.raises(ValueError, match="`output`"):
        predictor.predict_video(clip, tmp_path, progress=False)


def test_a_stream_is_read_by_its_address(predictor, clip):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(clip.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/clip.mp4"
        assert is_video(address)
        assert len(list(predictor.video(address, every=4))) == 2
    finally:
        server.shutdown()
        server.server_close()


def test_a_rotated_video_is_upright(predictor, pictures, tmp_path):
    lying = [picture.transpose(Image.Transpose.ROTATE_90) for picture in pictures[:2]]
    path = write_clip(tmp_path / "phone.mp4", lying)
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44  # of the track's header, in 16.16 and 2.30 fixed point
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    (frame, _), *_ = predictor.video(path)
    difference = np.abs(np.asarray(frame.image, dtype=int) - np.asarray(pictures[0], dtype=int)).mean()
    assert difference < 10  # lossy, but not turned


@pytest.mark.parametrize("extra_bytes", [0, 10], ids=["after a frame", "within a frame"])
def test_a_video_that_ends_in_the_middle_keeps_what_it_has(predictor, pictures, tmp_path, extra_bytes):
    path = write_clip(tmp_path / "cut.mp4", pictures, options={"movflags": "faststart"})
    with av.open(str(path)) as container:
        ends = sorted(packet.pos + packet.size for packet in container.demux(video=0) if packet.size)
    path.write_bytes(path.read_bytes()[: ends[3] + extra_bytes])
    result = predictor.predict_video(path, tmp_path / "out", every=2, progress=False)
    assert 0 < result.num_frames < COUNT // 2
    assert "cut.mp4: it ends after" in result.failures[0]
    with av.open(str(result.video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == result.num_frames


def test_an_interrupted_run_keeps_its_frames(predictor, clip, tmp_path):
    calls = []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    hook = (predictor.network or predictor.model).register_forward_pre_hook(interrupt)
    try:
        result = predictor.predict_video(clip, tmp_path, progress=False)
    finally:
        hook.remove()
    assert result.num_frames == 2
    with av.open(str(result.video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 2


@pytest.mark.parametrize("content", [b"", b"no video", b"\x00\x00\x00\x20ftypisom" + b"\x00" * 100])
def test_a_file_that_is_no_video_is_named(predictor, tmp_path, content):
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        predictor.predict_video(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_video_is_read_up_to_its_limit(clip):
    with closing(Video(clip, every=3, limit=2)) as video:
        assert [frame.number for frame in video] == [0, 3]
        assert video.failures == [f"{clip}: only its first 6 frames are read"]
    with closing(Video(clip, limit=COUNT)) as video:
        assert len(list(video)) == COUNT
        assert video.failures == []


def test_frames_may_not_grow_beyond_the_limit(pictures, tmp_path, monkeypatch):
    closed, narrow = [], write_clip(tmp_path / "a.mp4", pictures)
    with monkeypatch.context() as patch:
        patch.setattr(Video, "close", lambda video: closed.append(video))
        with pytest.raises(ValueError, match="has more than 16,383 pixels"):
            Video(narrow, max_pixels=SIDE * SIDE - 1)
    assert len(closed) == 1
    large = [picture.resize((8 * SIDE, 8 * SIDE)) for picture in pictures]
    parts = [write_clip(tmp_path / f"{len(some)}.ts", some) for some in (pictures[:3], large)]
    (tmp_path / "growing.mpg").write_bytes(b"".join(part.read_bytes() for part in parts))
    for max_pixels, widest in ((None, 8 * SIDE), (SIDE * SIDE, SIDE)):
        with closing(Video(tmp_path / "growing.mpg", max_pixels=max_pixels)) as video:
            assert max(frame.image.width for frame in video) == widest
            assert len(video.failures) == (max_pixels is not None)


def test_a_video_file_does_not_open_others(clip, tmp_path):
    (tmp_path / "other.mp4").write_bytes(clip.read_bytes())
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    with pytest.raises(ValueError, match=r"list\.mp4"):
        Video(tmp_path / "list.mp4")


def test_a_file_without_pictures_and_a_bad_step_are_refused(predictor, clip, tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="no pictures"):
        next(predictor.video(tmp_path / "sound.mp4"))
    with pytest.raises(ValueError, match="`every`"):
        next(predictor.video(clip, every=0))


def test_files_of_a_folder_that_are_no_images_are_named(predictor, pictures, tmp_path, caplog):
    pictures[0].save(tmp_path / "a.png")
    (tmp_path / "clip.mov").write_bytes(b"")
    (tmp_path / ".hidden").write_bytes(b"")
    predictor.predict(tmp_path, tmp_path / "out", progress=False)
    assert "1 of the files are not images and are left out: clip.mov" in caplog.text


def test_photographs_of_an_iphone_are_read(predictor, pictures, tmp_path):
    pytest.importorskip("pillow_heif")
    pictures[0].save(tmp_path / "IMG_1.HEIC", format="HEIF", quality=95)
    folder = predictor.predict(tmp_path, tmp_path / "out", progress=False)
    assert len(folder) == 1
    labels = {s.label for s in next(iter(folder))[1].segments}
    assert labels & {s.label for s in predictor(pictures[0]).segments}
