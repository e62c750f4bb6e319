"""Names of classes and files are shown as text in every report, and never as markup."""

import json

import numpy as np
import pytest
from markdown_it import MarkdownIt

from detr_panoptic.commands import main
from detr_panoptic.data.plain_text import markdown, one_line
from detr_panoptic.evaluation.errors import ErrorAnalysis
from detr_panoptic.evaluation.results import ClassQuality, Evaluation, GroupQuality, PanopticQualityResult
from detr_panoptic.sharing.card import CardFacts, build_card
from detr_panoptic.training.data import TrainingData
from detr_panoptic.training.reports import measured_quality
from detr_panoptic.visualization import draw_segments
from detr_panoptic.visualization.labels import label_text
from tests.conftest import build_tiny, photo
from tests.data_folders import CATEGORIES, coco_panoptic

NASTY = {
    "script": "<script>alert(1)</script>",
    "attribute": "\" onerror='alert(1)' x=\"",
    "image": "<img src=x onerror=alert(1)>",
    "cell": "a | b || c",
    "backticks": "`a` ``` ~~~",
    "break": "a\n\n# title\r\n- item\u2028<b>",
    "link": "[a](javascript:alert(1)) ![b](http://c/d.png) <http://e>",
    "direction": "photo\u202egpj.exe \u2066a\u2069",
    "terminal": "\x1b[2J\x1b]0;title\x07",
    "emphasis": "**a** __b__ ~~c~~",
    "entity": "&lt;b&gt; &#60;",
    "rich": "[red]a[/red] [link=http://b]c[/link]",
    "backslash": "a\\| \\<b>",
}
CONTROLS = [chr(code) for code in (*range(9), *range(11, 32), 0x7F, 0x202E, 0x2066, 0x2069, 0x2028)]
NAMES = list(NASTY.values())


def assert_only_table_cells(text, names):
    """Markdown whose blocks are headings, lists, tables and fences of ours, with each name in it as text."""
    assert not [letter for letter in CONTROLS if letter in text]
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)
    inline = [child for token in tokens for child in token.children or ()]
    kinds = {token.type for token in (*tokens, *inline)}
    assert not kinds & {"link_open", "code_inline", "em_open", "strong_open", "s_open", "html_inline", "html_block"}
    assert [token.info for token in tokens if token.type == "fence"] in ([], [""], ["python", ""])
    shown = "\n".join("".join(child.content for child in token.children or ()) for token in tokens)
    for name in names:
        assert one_line(name).strip() in shown
    return tokens


def test_markdown_shows_a_name_as_it_is():
    lines = [f"- {markdown(name)}" for name in NAMES]
    rows = ["| a | b |", "|---|---|", *(f"| {markdown(name)} | {index} |" for index, name in enumerate(NAMES))]
    tokens = assert_only_table_cells("\n".join([*lines, "", *rows]), NAMES)
    assert sum(token.type == "list_item_open" for token in tokens) == len(NAMES)
    assert sum(token.type == "td_open" for token in tokens) == 2 * len(NAMES)


def test_labels_in_pictures_are_one_line():
    """Pillow refuses to measure a text of two."""
    ids = np.ones((40, 90), np.int64)
    for name in NAMES:
        drawn = draw_segments(photo((90, 40), seed=0), ids, [{"id": 1, "label_id": 0}], {0: name})
        assert drawn.size == (90, 40)
        assert label_text({"label_id": 0, "score": 0.5}, {0: name}) == f"{one_line(name)} 0.50"


def test_the_check_of_a_dataset_shows_names_as_they_are(tmp_path, capsys):
    path = coco_panoptic(tmp_path / "my_data") / "panoptic.json"
    contents = json.loads(path.read_text())
    contents["images"] += [{"id": 1000 + i, "file_name": name} for i, name in enumerate(NAMES)]
    contents["categories"] += [{"id": 1000 + i, "name": name, "isthing": 1} for i, name in enumerate(NAMES)]
    path.write_text(json.dumps(contents))
    main(["data", "check", str(tmp_path / "my_data"), "--report", str(tmp_path / "report")])
    text = (tmp_path / "report" / "check.md").read_text()
    assert "<script" not in text
    assert not [letter for letter in CONTROLS if letter in capsys.readouterr().out + text.replace("\n", "")]


def test_an_evaluation_shows_names_as_they_are(tmp_path):
    group = GroupQuality(0.5, 0.5, 0.5, 1)
    row = ClassQuality(1, True, 0.5, 0.5, 0.5, 1, 0, 0)
    quality = PanopticQualityResult(group, group, group, dict.fromkeys(NAMES, row))
    settings = {"data": "a|b\n<c>"}
    evaluation = Evaluation(quality, {}, 1, NAMES, dataset="", settings=settings, errors=ErrorAnalysis({}, {}))
    assert_only_table_cells((evaluation.save(tmp_path) / "metrics.md").read_text(), NAMES)


def test_the_card_of_a_training_shows_names_as_they_are():
    line = {"step": 1, "epoch": 1} | dict.fromkeys(("pq", "sq", "rq"), 0.5)
    line |= {f"{name}_{kind}": 0.5 for name in ("pq", "sq", "rq") for kind in ("things", "stuff")}
    line |= {f"pq/{name}": 0.5 for name in NAMES}
    data = {"training": "; ".join(NAMES), "validation": NASTY["break"]}
    plan = ["recipe: none", "```\n<script>alert(1)</script>"]
    trained = TrainingData([], [], CATEGORIES, "a", NASTY["script"], [])
    quality = measured_quality(line, trained)
    card = str(build_card(build_tiny(), CardFacts(name="a", data=data, recipe=plan, quality=quality)))
    card = card.partition("\n---\n")[2]
    body = card.partition("## Data")[2]
    for own in ("<details><summary>by class</summary>", "</details>", "`detr_panoptic.evaluate`"):
        assert own in body
        body = body.replace(own, "")
    assert_only_table_cells(body, NAMES)


def test_names_on_the_terminal_are_text(tmp_path, model_folder, capsys):
    name = "[red]a\x1b[2J\u202eb.png"
    photo((31, 23), seed=0).save(tmp_path / name)
    words = ["predict", str(tmp_path / name), str(tmp_path / "gone\x1b[2J.png"), "--model", str(model_folder)]
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "\u202e" not in shown.out + shown.err
    assert r"gone\x1b[2J.png" in shown.err
    assert "[red]a" in shown.out


def test_a_name_that_is_no_text_is_a_result_too(tmp_path, model_folder, capsys):
    """Linux takes any bytes for a file's name."""
    path = tmp_path / "a\udcffb.png"
    try:
        photo((31, 23), seed=0).save(path)
    except (OSError, UnicodeError):
        pytest.skip("this file system wants UTF-8")
    assert main(["predict", str(path), "--model", str(model_folder), "--output", str(tmp_path / "out")]) == 0
    contents = json.loads((tmp_path / "out" / r"a\udcffb.json").read_text())
    assert contents["image"] == str(tmp_path / r"a\udcffb.png")
    assert r"a\udcffb.png" in capsys.readouterr().out
