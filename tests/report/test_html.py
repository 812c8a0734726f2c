"""The report: one safe, complete file in every state of a run."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from report.fake_run import make
from triloop.errors import RunFolderError
from triloop.report.html import render, write
from triloop.store import Run, metrics_row

VOID = {"meta", "br", "hr", "img", "link", "input", "rect", "line", "path", "circle"}
LOADS = {"src", "srcset", "poster", "data", "action", "formaction", "background", "xlink:href"}

STATES = {
    "finished": {},
    "stopped": {"stop": 8},
    "killed": {"done": 5},
    "nothing": {"done": 0},
    "one round": {"rounds": 1},
    "long": {"rounds": 90},
}


class Reader(HTMLParser):
    """Balance of tags, what would be loaded, and the text that a reader sees."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        self.loads += [f"{k}={v}" for k, v in attrs if k in LOADS or k.startswith("on")]
        if "id" in given:
            self.ids.append(str(given["id"]))
        if "href" in given:
            self.links.append(str(given["href"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def _page(path: Path, **how: int) -> tuple[str, Reader]:
    make(path, **how)
    text = write(path).read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    reader.close()
    return text, reader


@pytest.mark.parametrize("how", STATES.values(), ids=STATES)
def test_it_is_one_safe_file(run_dir: Path, how: dict[str, int]) -> None:
    text, reader = _page(run_dir, **how)
    assert reader.open == []
    assert reader.loads == []
    assert not reader.tags & {"script", "iframe", "object", "embed", "img", "link", "form", "base"}
    assert not re.search(r"(?i)https?://|//[a-z]|@import|url\(", text)
    assert "default-src 'none'" in text
    assert "\x00" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "nan" not in re.sub(r"<style>.*</style>", "", text, flags=re.S).lower()
    assert len(reader.ids) == len(set(reader.ids))
    assert {link.removeprefix("#") for link in reader.links} <= set(reader.ids)


def test_what_a_model_wrote_stays_text(run_dir: Path) -> None:
    text, reader = _page(run_dir)
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert any("<script>alert(1)</script>" in said for said in reader.text)
    assert any("entropy <fell>" in said for said in reader.text)


def test_it_tells_how_far_the_run_came(run_dir: Path) -> None:
    text, reader = _page(run_dir)
    said = " ".join(reader.text)
    assert "from 33.2 % to 91.4 %" in text
    assert "+58.2 points" in said
    assert "512 held-out problems" in said
    assert not re.search(r"%\s*%", said), "the unit stands once"
    for part in ("Samples", "Curves", "Guards", "Lineage", "Configuration", "Environment"):
        assert part in said
    assert "Before" in said
    assert "After" in said
    assert text.count("<svg") > 6
    assert "canary_gold" not in said, "names of metrics are for programs"


def test_a_stop_comes_first_with_reason_and_samples(run_dir: Path) -> None:
    text, reader = _page(run_dir, stop=8)
    said = " ".join(reader.text)
    assert text.index("Stopped") < text.index('id="samples"')
    assert "the reward is gamed" in said
    assert "8/8-0/0" in said[: said.index("Before")], "the samples of the verdict stand in the banner"


def test_a_note_is_no_alarm(run_dir: Path) -> None:
    text, reader = _page(run_dir)
    said = " ".join(reader.text)
    assert "little to learn from" in said
    assert re.search(r"guards, alarms\s+2\s+entropy", said)
    assert 'aria-label="spread: no alarm in 1 checks"' in text


def test_smaller_steps_have_a_strip_of_their_own(run_dir: Path) -> None:
    assert ">learning rate<" not in _page(run_dir)[0]
    with Run.open(run_dir, write=True) as run:
        scaled = {4: 0.5, 5: 0.25, 6: 0.25, 7: 0.5, 9: 0.5}
        run.append([metrics_row(m["round"], {**m, "lr_scale": scaled.get(m["round"], 1.0)}) for m in run.metrics()])
    text = write(run_dir).read_text(encoding="utf-8")
    assert 'aria-label="learning rate: smaller in 5 rounds, × 0.25 at the least"' in text
    told = re.findall(r"<title>learning rate × ([\d.]+), round ([^<]+)<", text)
    assert told == [("0.5", "4"), ("0.25", "5 to 6"), ("0.5", "7"), ("0.5", "9")]


def test_a_killed_run_says_how_to_go_on(run_dir: Path) -> None:
    text, _ = _page(run_dir, done=5)
    assert f"triloop resume {run_dir.name}" in text
    assert "5 of 12" in text


def test_charts_have_tables_behind_them_and_words_for_them(run_dir: Path) -> None:
    text, _ = _page(run_dir)
    charts = re.findall(r'<svg class="chart"[^>]*>', text)
    assert charts
    assert all('role="img"' in c and "aria-label=" in c for c in charts)
    assert len(re.findall("<details", text)) >= len(charts)


def test_the_same_run_gives_the_same_page(run_dir: Path) -> None:
    make(run_dir)
    with Run.open(run_dir, write=False) as run:
        assert render(run) == render(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError):
        write(tmp_path)
