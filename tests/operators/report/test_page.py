"""The pages stand alone, escape what comes from outside, and come out the same each time."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from operators.planning.estimate import Cost
from operators.planning.expansion import Interval
from operators.report import plots
from operators.report.page import plan_page, report_page
from operators.report.summary import FragmentTally
from operators.work.fragment import Counts
from tests.operators.report.examples import PLAN, REPORT

EVIL = '<script>alert("1")</script>&\'"></svg></style><img src=x onerror=1>$x^{$\x00\x1b\ud800😀'
VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """Collects tags, attributes and visible text, and fails on tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def evil_report() -> Any:
    plan = replace(PLAN, notes=(EVIL,), cost=replace(PLAN.cost, hardware=EVIL, message=EVIL))
    return replace(
        REPORT,
        job=EVIL,
        model=EVIL,
        output=EVIL,
        fingerprint=EVIL,
        hardware=EVIL,
        dtype="float16",
        rejected_reasons={EVIL: 3, EVIL[:40]: 2},
        lost_by_file={EVIL: 3},
        counts=replace(REPORT.counts, seconds={EVIL: 1.0}),
        versions={EVIL: EVIL},
        config={EVIL: [EVIL, {"deep": EVIL}]},
        notes=(EVIL,),
        plan=plan,
    )


@pytest.mark.parametrize("page", [report_page(REPORT), plan_page(PLAN, REPORT.config)], ids=["report", "plan"])
def test_page_needs_nothing_but_itself(page: str) -> None:
    parsed = Page(page)
    assert {"script", "link", "iframe", "object", "base"}.isdisjoint(parsed.tags)
    addresses = [value for name, value in parsed.attributes if name in ("src", "href", "xlink:href", "action", "data")]
    assert all(value is not None and value.startswith("#") for value in addresses)
    assert "@import" not in page
    assert all(reference.startswith("#") for reference in re.findall(r"url\(([^)]*)\)", page))
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in parsed.attributes


@pytest.mark.parametrize("page", [report_page(evil_report()), plan_page(evil_report().plan, evil_report().config)])
def test_page_shows_markup_from_outside_as_text(page: str) -> None:
    parsed = Page(page)
    assert {"script", "img"}.isdisjoint(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert any('<script>alert("1")</script>' in words for words in parsed.words)
    assert not {"\x00", "\x1b"} & set(page)
    page.encode()


def test_page_has_the_figures_and_the_verdicts() -> None:
    words = Page(report_page(replace(REPORT, dataset_bytes=99_000_000))).words
    text = " ".join(words)
    for expected in ("47,136", "49,462", "6,612", "0.70 %", "29.0 %", "$0.043", "blank_text", "Plan against actual"):
        assert expected in text
    assert words.count("inside") == 6
    assert words.count("outside") == 1


def test_page_has_four_plots_of_valid_xml_with_ids_of_their_own() -> None:
    page = report_page(REPORT)
    drawings = [svg for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if 'aria-label="interval"' not in svg]
    names = {ElementTree.fromstring(svg).attrib["aria-label"] for svg in drawings}
    assert names == {"throughput", "lengths", "stages", "reasons"}
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]*)', page)) <= set(ids)


def test_page_says_in_which_files_tokens_were_cut_off() -> None:
    words = " ".join(Page(report_page(REPORT)).words)
    assert "Tokens cut off by truncation" in words
    assert re.search(r"corpus/b\.jsonl\s+150,000\s+73\.2 %", words)
    assert "Tokens cut off" not in report_page(replace(REPORT, lost_by_file={}))


def test_page_of_the_same_report_is_the_same() -> None:
    assert report_page(REPORT) == report_page(REPORT)
    assert plan_page(PLAN, {}) == plan_page(PLAN, {})


def test_page_of_a_run_that_did_nothing_stands() -> None:
    idle = replace(
        REPORT,
        counts=Counts(),
        dataset=Counts(),
        throughput=(),
        rejected_reasons={},
        fragments=FragmentTally(0, 40, 40),
        plan=None,
        mfu=None,
        cost_usd=None,
    )
    parsed = Page(report_page(idle))
    assert "Plan against actual" not in parsed.words
    assert "svg" not in parsed.tags


def test_page_of_a_plan_without_hardware_says_what_to_set() -> None:
    words = Page(plan_page(replace(PLAN, cost=Cost(message="for money set X"), padding_share=None), {})).words
    assert "for money set X" in words
    assert words.count("unknown") == 3


def test_page_of_a_plan_of_nothing_stands() -> None:
    zero = Interval.exactly(0.0)
    empty = replace(
        PLAN, documents=zero, tokens=zero, chunks=zero, rejected=zero, lengths=(0,) * 17, length_percentiles={}
    )
    assert "svg" in Page(plan_page(empty, {})).tags


def test_throughput_plot_keeps_the_number_of_steps_small() -> None:
    many = tuple(replace(REPORT.throughput[0], seconds=float(i), tokens=100 * i) for i in range(1, 5000))
    assert len(plots.throughput_svg(many, 100.0, None)) < 30_000


def test_plots_label_equal_names_each() -> None:
    svg = plots.reasons_svg({"x" * 40 + "a": 5, "x" * 40 + "b": 4})
    assert svg.count("x" * 27 + "~") == 2


def test_reasons_plot_gathers_the_rare_ones() -> None:
    svg = plots.reasons_svg({f"reason{i:02d}": 50 - i for i in range(20)})
    assert "reason07" in svg
    assert "reason08" not in svg
    assert f">{sum(range(31, 43))}<" in svg.replace("\n", "")


def test_importing_the_page_does_not_import_matplotlib_or_torch() -> None:
    code = "import sys, operators.report.page; print({'matplotlib', 'torch', 'ray', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
