"""Every command of results/COURSE.md runs, at smoke size and in the order of the course."""
import re
import shlex

from conftest import ROOT, SMOKE

COURSE = (ROOT / "results/COURSE.md").read_text()


def test_every_command_and_snippet_of_the_course_runs_in_its_order(tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", COURSE, re.M | re.S)
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
    for lab in COURSE.split("\n## Lab ")[1:]:
        exercises = re.split(r"^### ", lab, flags=re.M)[1:]
        assert len(exercises) == 5
        for text in exercises:
            parts = ("*Question.*", "*Predict.*", "```", "*Look at*", "Outcome</summary>", "*Open question.*",
                     "For the teacher</summary>")
            assert all(part in text for part in parts), text
        minutes = [map(int, found) for found in re.findall(r"\*Minutes\.\* (\d+) \+ (\d+) \+ (\d+)", lab)]
        assert sum(map(sum, minutes)) == 90
