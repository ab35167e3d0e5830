"""The report of a run, in a real browser: complete, readable by everyone, offline, and proof against hostile names."""

import base64
import json
import re
import shutil

import pytest
import torch
from browsing import violations
from torch import nn

from trainer import files, report, runs
from trainer.config import configure
from trainer.data import Data, Split
from trainer.evaluate import OpenRun
from trainer.report import charts, markup
from trainer.report.asking import ask
from trainer.report.charts import Series
from trainer.tasks import IMAGES, Shape

HOSTILE = (
    "<script>document.title='canary'</script>",
    '"><img src=x onerror="document.title=\'canary\'">',
    "</style></title><svg onload=document.title='canary'>",
    "' onmouseover='x' & &amp; {{7*7}}",
    "猫 🐈 ネコ",
    "a-very-long-class-name-without-any-space-in-it-" * 6,
    "many words make a name that is long as well " * 6,
)


class Brightness(nn.Module):
    """Its answer goes by the mean brightness: enough of a model to be reported on."""

    def __init__(self, classes):
        super().__init__()
        self.last = nn.Linear(1, classes)

    def forward(self, images):
        return self.last(images.mean((1, 2, 3))[:, None])


@pytest.fixture
def made_up(tmp_path):
    """A run of noise with the classes that are asked for, and its report."""

    def make(classes, records=(), summary=None, **test):
        torch.manual_seed(0)
        count = max(60, 2 * len(classes))
        split = Split(torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8), torch.arange(count) % len(classes))
        held = Data("noise", tuple(classes), split, split, "f", IMAGES, Shape(IMAGES.name, (3, 32, 32), len(classes)))
        config = configure({"data": "digits", "out": tmp_path / "made up"})
        config.out.mkdir()
        runs.write_facts(config.out, held)
        (config.out / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
        if summary is not None:
            files.replace_json(config.out / "summary.json", summary)
        model = Brightness(len(classes)).eval()
        return report.write(ask(OpenRun(model, config, held, runs.Weights(config.out / "model.pt"))))

    return make


# ---- the report of a real run


def test_a_finished_run_has_its_report_whole_and_offline(digits_run, open_page):
    page = open_page(digits_run / "report.html")
    assert page.fetched == [(digits_run / "report.html").as_uri()], "it fetched something"
    assert page.said == []
    summary = json.loads((digits_run / "summary.json").read_text())
    text = page.inner_text("main")
    for expected in (
        "digits · lenet", f"{100 * summary['test_accuracy']:.1f}\u00a0% of 360 test images are recognised", "62,006",
        "How it went", "Class by class", "What is taken for what", "How far it can be believed", "Examples",
        "Some that are right", "How to repeat it", "python -m trainer train --config", "--lr", summary["python"],
    ):  # fmt: skip
        assert expected in text, expected
    for absent in ("nan", "inf ", "None", "Cost", "Under attack", "What it gives away"):
        assert absent not in text, f"{absent}: there is no such thing in this run"
    assert page.locator("svg[role=img]").count() == 4  # loss, accuracy, speed, certainty
    loss = page.locator("svg[role=img]").first.get_attribute("aria-label")
    assert re.match(r"Loss by epoch: training \d\.\d+ to \d\.\d+; test \d\.\d+ to \d\.\d+\.", loss)
    assert page.locator("polyline").count() == 4
    widths = page.evaluate("[...document.images].map(each => each.complete && each.naturalWidth)")
    assert len(widths) >= 16 and set(widths) == {32}
    matrix = page.locator("table.matrix tbody tr")
    diagonal = sum(int(matrix.nth(at).locator("td").nth(at).inner_text()) for at in range(10))
    assert diagonal == summary["test_correct"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everyone_can_read_it(digits_run, open_page, scheme):
    page = open_page(digits_run / "report.html", color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert violations(page) == []
    assert page.evaluate("[...document.images].every(each => each.alt.length > 10)")
    assert page.evaluate("[...document.querySelectorAll('table')].every(each => each.caption && each.tHead)")


def test_it_fits_a_telephone_and_prints_on_a_few_pages(digits_run, open_page):
    page = open_page(digits_run / "report.html", viewport={"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    paper = page.pdf(format="A4")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", paper)) <= 6


def test_it_is_one_file_that_names_no_other(digits_run):
    text = (digits_run / "report.html").read_text()
    assert all(found.startswith("data:image/png;base64,") for found in re.findall(r'(?:src|href)="([^"]*)"', text))
    assert not re.search(r"url\(|@import|srcset|<link|<iframe", text)
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text
    assert len(text) < 300_000
    for held in re.findall(r"data:image/png;base64,([^\"]+)", text):
        assert base64.b64decode(held).startswith(b"\x89PNG")


def test_it_is_made_anew_with_what_other_commands_found_and_what_it_cost(run, digits_run, tmp_path, open_page):
    folder = shutil.copytree(digits_run, tmp_path / "run")
    run("attack", "--out", folder, "--method", "fgsm", "--epsilon", "4/255")
    run("membership", "--out", folder)
    files.replace_json(folder / "price.json", {"per_hour": 36.0, "currency": "CNY", "machine": "a large one"})
    outcome = run("report", "--out", folder)
    assert outcome.code == 0 and str(folder / "report.html") in outcome.out
    text = open_page(folder / "report.html").inner_text("main")
    seconds = json.loads((folder / "summary.json").read_text())["seconds"]
    assert "Accuracy under FGSM, one step" in text and "4/255" in text
    assert "area under the curve of 0." in text
    assert f"{seconds / 100:,.2f} CNY for the steps, at 36.00 an hour of a large one" in text

    weights = torch.load(folder / "model.pt")
    weights["fc3.bias"] += 1  # as if the run had gone on
    torch.save(weights, folder / "model.pt")
    (folder / "checkpoint.pt").unlink()
    run("report", "--out", folder)
    assert "Accuracy under FGSM" not in (folder / "report.html").read_text(), "that was measured on other weights"


def test_a_report_that_cannot_be_made_ends_no_run(run, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "make", lambda run: 1 / 0)
    outcome = run("train", "--limit", 100, "--epochs", 1, "--out", tmp_path / "run")
    assert outcome.code == 0
    assert "note: no report could be made: division by zero" in outcome.out
    assert (tmp_path / "run/summary.json").exists()


def test_a_file_that_holds_something_else_is_said_in_a_line(run, digits_run, tmp_path):
    folder = shutil.copytree(digits_run, tmp_path / "run")
    (folder / "summary.json").write_text('{"seconds": "a minute"}')
    done = run("report", "--out", folder)
    assert done.code == 2 and "holds something else than a run writes" in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize("data", ["pydoc", "tones"])
def test_text_and_sound_have_reports_too(run, tmp_path, open_page, data):
    recipe = ("--limit", 20, "--epochs", 1, "--batch-size", 10, "--context", 32)
    assert run("train", "--data", data, *recipe, "--out", tmp_path / "run").code == 0
    page = open_page(tmp_path / "run/report.html")
    assert violations(page) == []
    text = page.inner_text("main")
    assert ("perplexity" in text) == (data == "pydoc")
    assert ("Class by class" in text) == (data == "tones")


# ---- whatever the classes are called, and however many there are


def test_hostile_names_are_only_names(made_up, open_page):
    """With the page's own policy switched off: the escaping alone must hold."""
    path = made_up(HOSTILE, summary={"device": HOSTILE[0], "torch": HOSTILE[1]})
    page = open_page(path, bypass_csp=True)
    assert page.title() == "Training run: noise · lenet"
    assert page.evaluate("document.scripts.length") == 0
    assert page.evaluate("document.querySelectorAll('[onerror], [onload], [onmouseover]').length") == 0
    text = page.inner_text("main")
    for name in HOSTILE:
        assert " ".join(name.split()) in " ".join(text.split())
    assert page.fetched == [path.as_uri()]
    assert violations(page) == []


def test_the_page_itself_forbids_scripts_and_fetching(made_up, open_page):
    path = made_up(("a", "b"))
    path.write_text(path.read_text().replace("</main>", f"{HOSTILE[0]}<img alt=x src=http://127.0.0.1:9/></main>"))
    page = open_page(path)
    assert page.title() != "canary"
    assert len([line for line in page.said if "Content Security Policy" in line]) == 2


def test_long_names_leave_the_page_as_wide_as_it_is(made_up, open_page):
    page = open_page(made_up(HOSTILE), viewport={"width": 800, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 800


def test_a_hundred_classes_are_a_picture_and_a_table(made_up, open_page):
    page = open_page(made_up([f"class {at}" for at in range(100)]))
    assert page.locator("table.matrix").count() == 0
    picture = page.locator("img.map")
    assert picture.evaluate("each => each.naturalWidth") == 100
    assert "100 classes" in picture.get_attribute("alt")
    assert page.locator("table").first.locator("tbody tr").count() == 100
    assert violations(page) == []


def test_what_is_missing_is_left_out_and_what_is_no_number_is_not_drawn(made_up):
    records = [
        {"epoch": 1, "train_loss": float("nan"), "test_loss": 2.0, "test_accuracy": 0.1, "seconds": 1},
        {"epoch": 2, "train_loss": 1.5, "test_loss": float("inf"), "test_accuracy": 0.2, "images_per_s": 12},
        {"epoch": 3, "train_loss": 1.0, "test_loss": 1.0, "test_accuracy": None, "gpu_use": 0.5, "seconds": 3},
    ]  # fmt: skip
    text = made_up(("a", "b"), records).read_text()
    body = re.sub(r"base64,[^\"]*", "", text.partition("</head>")[2])
    assert not re.search(r"\b(nan|NaN|inf|None|null)\b", body.replace("null</td>", ""))  # null: an option not given
    assert "GPU use" in body and "50.0\u00a0%" in body and "GPU memory" not in body and "<h2>Cost" not in body


# ---- the parts


def test_text_stays_text_and_markup_markup():
    inner = markup.element("b", "1 < 2")
    held = markup.element("p", inner, " & ", None, ["x", inner], class_='"', hidden=True, title=None)
    assert held == '<p class="&quot;" hidden><b>1 &lt; 2</b> &amp; x<b>1 &lt; 2</b></p>'


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    (0.31, 2.28, [0, 0.5, 1, 1.5, 2, 2.5]),
    (9000, 9290, [9000, 9100, 9200, 9300]),
    (5, 5, [4.5, 4.6, 4.7, 4.8, 4.9, 5, 5.1, 5.2, 5.3, 5.4, 5.5]),
    (1e-9, 3e-9, [1e-9, 1.5e-9, 2e-9, 2.5e-9, 3e-9]),
])  # fmt: skip
def test_axes_have_round_figures(low, high, expected):
    found = charts.ticks(low, high)
    assert found[0] <= low and found[-1] >= high and len(found) <= 12
    if low != high:
        assert found == pytest.approx(expected)


def test_a_line_lies_where_its_points_are():
    drawn = charts.lines("Loss", [Series("test", [(1, 0.0), (2, 1.0), (3, 0.5)])])
    (points,) = re.findall(r'points="([^"]+)"', drawn)
    (x1, y1), (x2, y2), (x3, y3) = (map(float, pair.split(",")) for pair in points.split())
    assert x1 < x2 < x3 and x2 - x1 == pytest.approx(x3 - x2)
    assert y2 < y3 < y1 and y3 == pytest.approx((y1 + y2) / 2)
    assert charts.lines("Loss", [Series("test", [(1, float("nan"))])]) == ""


def test_the_interval_is_wilsons():
    assert report.interval(358, 360) == pytest.approx((0.97999, 0.99848), abs=1e-4)
    assert report.interval(0, 10)[0] == pytest.approx(0, abs=1e-9)
