"""README, notes and course say what the results say, their commands exist, and those of the course run."""
import re
import shlex
import shutil

import pytest

import train
from conftest import ROOT, SMOKE
from results import report

RESULTS = ROOT / "results"
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "results/NOTES.md", "results/COURSE.md")}
FOUND = report.findings(RESULTS)


def test_the_claims_in_the_readme_its_answers_and_the_page_of_all_comparisons_are_what_the_logs_give():
    assert FOUND.split("\n\n")[0] in PAGES["README.md"]
    assert (RESULTS / "main/show.txt").read_text().rstrip() in PAGES["README.md"]
    assert (RESULTS / "README.md").read_text().rstrip() == FOUND.rstrip()


def test_the_readme_can_be_read_in_seven_minutes_and_its_first_screen_has_picture_and_command():
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 170 and len(PAGES["README.md"].split()) <= 1600
    assert "results/main/figure.png" in "".join(lines[:25]) and "python train.py " in "".join(lines[:25])


@pytest.mark.parametrize("page", PAGES)
def test_every_interval_that_a_page_quotes_stands_in_a_report(page):
    reports = FOUND + "".join(path.read_text() for path in RESULTS.rglob("report.md"))
    quoted = re.findall(r"-?\d+\.\d+ \[-?\d+\.\d+, -?\d+\.\d+\]", " ".join(PAGES[page].split()))
    assert len(quoted) > 9 and not [x for x in quoted if x not in reports]


def test_numbers_without_an_interval_are_those_of_the_logs():
    log = report.read_study(RESULTS / "main")[0]

    def mean(key, step=None):
        return f"{log('target', key, step).mean():.0f}%"

    def span(arm, key):
        return f"{log(arm, key).min():.0f} to {log(arm, key).max():.0f}%"

    def closed(key):
        return f"{log.difference(key, 'curriculum', 'target').mean / log.difference(key).mean:.0%}"

    alone, pages = report.single_runs(log, "main"), " ".join("".join(PAGES.values()).split())
    for sentence in (
            f"`target` ends with {mean('copain')} right, {mean('copain_not_in_list')} outside the list and "
            f"{mean('copain_wrong_element')} wrong elements. If only the list's elements compete, it is "
            f"right in {mean('copain_restricted')}, the base in {mean('copain_restricted', 0)};",
            f"Copain ends at {span('target', 'copain')} for `target`, {span('target+english', 'copain')} for "
            f"`target+english`; the label task at {span('target', 'label_target')} and "
            f"{span('target+english', 'label_target')}.",
            f"on the label task: {closed('copain')} and {closed('label_target')} of the gaps.",
            ": " + ", ".join(f"{claim} {n}" for claim, n in alone.items()) + "."):
        assert sentence in pages, sentence


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
        folder = shutil.copytree(study.parent, tmp_path / study.parent.name)
        (folder / "report.md").unlink()
        report.report(folder)
        assert (folder / "report.md").read_text() == (study.parent / "report.md").read_text()


def test_every_command_and_snippet_of_the_course_runs_in_its_order(tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", PAGES["results/COURSE.md"], re.M | re.S)
    assert len(blocks) > 8
    for language, block in blocks:
        if language == "python":
            exec(block, {})
            continue
        for line in block.splitlines():
            program, script, *flags = shlex.split(line, comments=True)
            if script == "train.py":
                flags += [*SMOKE, "--name", "laptop", "--steps", "1", "--base_steps", "1"]
            code, out, err = call(tmp_path, script, *flags)
            assert program == "python" and code == 0, f"{line}\n{err}"


def test_an_exercise_has_all_its_parts_and_each_lab_takes_ninety_minutes():
    for lab in PAGES["results/COURSE.md"].split("\n## Lab ")[1:]:
        exercises = re.split(r"^### ", lab, flags=re.M)[1:]
        assert len(exercises) == 5
        for text in exercises:
            parts = ("*Question.*", "*Predict.*", "```", "*Look at*", "Outcome</summary>", "*Open question.*",
                     "For the teacher</summary>")
            assert all(part in text for part in parts), text
        minutes = [map(int, found) for found in re.findall(r"\*Minutes\.\* (\d+) \+ (\d+) \+ (\d+)", lab)]
        assert sum(map(sum, minutes)) == 90
