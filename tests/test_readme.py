"""README, notes and course say what the results say, and their commands exist."""
import re
import shutil

import pytest

import train
from conftest import ROOT
from results import report

RESULTS = ROOT / "results"
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "results/NOTES.md", "results/COURSE.md")}
FOUND = report.findings(RESULTS)


def test_the_claims_in_the_readme_and_the_page_of_all_comparisons_are_what_the_logs_give():
    assert FOUND.split("\n\n")[0] in PAGES["README.md"]
    assert (RESULTS / "README.md").read_text().rstrip() == FOUND.rstrip()


def test_the_readme_can_be_read_in_ten_minutes():
    assert len(PAGES["README.md"].splitlines()) <= 230 and len(PAGES["README.md"].split()) <= 2200


@pytest.mark.parametrize("page", PAGES)
def test_every_interval_that_a_page_quotes_stands_in_a_report(page):
    reports = FOUND + "".join(path.read_text() for path in RESULTS.rglob("report.md"))
    quoted = re.findall(r"-?\d+\.\d+ \[-?\d+\.\d+, -?\d+\.\d+\]", " ".join(PAGES[page].split()))
    assert len(quoted) > 9 and not [x for x in quoted if x not in reports]


def test_numbers_without_an_interval_are_those_of_the_logs():
    main, schedule = (report.read_study(RESULTS / name)[0] for name in ("main", "schedule"))

    def curve(step, *keys):
        return [f"{main.along('target', key, step).mean():.0f}" for key in keys]

    def closed(key, end):
        gap = schedule.difference(key, f"target+english{end}", f"target{end}").mean
        return f"{schedule.difference(key, f'curriculum{end}', f'target{end}').mean / gap:.0%}"

    def span(arm, key):
        return f"{main(arm, key).min():.0f} to {main(arm, key).max():.0f}%"

    keys = "copain", "copain_not_in_list", "copain_wrong_element", "copain_restricted"
    (right, silent, wrong, listed), end, base = curve(100, *keys), curve(1000, *keys), curve(0, *keys)
    pages = " ".join("".join(PAGES.values()).split())
    for sentence in (
            f"at step 100 has {right}% right, {silent}% silent and {wrong}% wrong elements; at the end "
            f"{end[0]}, {end[1]} and {end[2]}. If only the list's elements count, it scores {listed}% and "
            f"{end[3]}%; the base, {base[3]}%.",
            f"closes {closed('copain', '')} of the gap on Copain, {closed('gain', '')} of that of the gain "
            f"from shots and {closed('label_target', '')} on the label task",
            f"it closes {closed('copain', '-at-40')}, {closed('gain', '-at-40')} and "
            f"{closed('label_target', '-at-40')}.",
            f"closes {closed('copain', '-at-40')} of Copain's gap; with the paper's own schedule, "
            f"{closed('copain', '-paper')}:",
            f"had {span('target', 'copain')} on Copain and {span('target', 'label_target')} on the label "
            f"task for `target`, {span('target+english', 'copain')} and "
            f"{span('target+english', 'label_target')} for `target+english`."):
        assert sentence in pages


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_on_a_page_exists(page):
    commands = re.findall(r"^ *python (?:-m )?(\S+)(.*(?:\\\n.*)*)", PAGES[page], re.M)
    commands += re.findall(r"`python (?:-m )?([^\s`]+)([^`]*)`", PAGES[page])  # within a sentence
    assert commands
    for script, rest in commands:
        source = (ROOT / f"{script.removesuffix('.py').replace('.', '/')}.py").read_text()
        known = set(re.findall(r'"(--\w+)"', source)) | {"--help"}
        if script == "train.py":
            known = {f"--{name}" for name in train.Settings.__dataclass_fields__} | {"--help"}
        assert set(re.findall(r"--\w+", rest.split(" #")[0])) <= known, (script, rest)


def test_every_link_to_a_file_leads_to_one():
    for page, text in PAGES.items():
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert ((ROOT / page).parent / link).exists(), f"{page}: {link}"


def test_every_report_is_drawn_from_its_log_again_without_a_change(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw_figure", lambda *_: None)
    for study in sorted(RESULTS.glob("*/metrics.jsonl")):
        folder = tmp_path / study.parent.name
        folder.mkdir()
        for name in ("metrics.jsonl", "settings.json"):
            shutil.copy(study.parent / name, folder)
        report.report(folder)
        for name in ("report.md", "summary.json"):
            assert (folder / name).read_text() == (study.parent / name).read_text()
