"""The README says what the results say, and its commands exist."""
import re
import shutil

import pytest

import bench
import train
from conftest import ROOT

README = (ROOT / "README.md").read_text()
FOUND = bench.findings(ROOT / "results")


def test_the_claims_in_the_readme_are_those_that_the_logs_give():
    assert FOUND.split("\n\n")[0] in README


def test_the_page_of_all_comparisons_is_what_the_command_prints():
    assert (ROOT / "results/README.md").read_text().rstrip() == FOUND.rstrip()


def test_every_interval_that_the_readme_quotes_stands_in_a_report():
    reports = FOUND + "".join(p.read_text() for p in (ROOT / "results").glob("*/report.md"))
    quoted = re.findall(r"-?\d+\.\d+ \[-?\d+\.\d+, -?\d+\.\d+\]", " ".join(README.split()))
    assert len(quoted) > 20 and not [x for x in quoted if x not in reports]


def test_every_flag_in_the_readme_exists():
    flags = {f"--{name}" for name in train.Settings.__dataclass_fields__} | {"--help"}
    known = {"train.py": flags, "bench.py": {"--show", "--report", "--findings", "--copain", "--task", "--shots", "--sample",
                                             "--language"},
             "data.py": {"--name", "--tokenizer", "--field", "--errors"}, "model.py": {"--export"}, "ema.py": set(),
             "curriculum.py": set(), "tests/soak.py": {"--kills"}, "tests/speed.py": {"--growth", "--nanogpt", "--compile"}}
    commands = re.findall(r"^ *python (\S+)(.*(?:\\\n.*)*)", README, re.M)
    assert len(commands) > 12
    for script, rest in commands:
        assert set(re.findall(r"--\w+", rest.split(" #")[0])) <= known[script], (script, rest)


def test_every_report_is_drawn_from_its_log_again_without_a_change(tmp_path):
    for study in sorted((ROOT / "results").glob("*/metrics.jsonl")):
        shutil.copytree(study.parent, tmp_path / study.parent.name)
        (tmp_path / study.parent.name / "report.md").unlink()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bench, "draw_curves", lambda *_: None)
            patch.setattr(bench, "draw_ends", lambda *_: None)
            bench.report(tmp_path / study.parent.name)
        for name in ("report.md", "summary.json"):
            assert (tmp_path / study.parent.name / name).read_text() == (study.parent / name).read_text()
