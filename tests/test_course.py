"""Every command of results/COURSE.md runs, at smoke size and in the order of the course."""
import re
import shlex

from conftest import ROOT, SMOKE

COURSE = (ROOT / "results/COURSE.md").read_text()


def test_every_command_and_snippet_of_the_course_runs_in_its_order(tmp_path, call):
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", COURSE, re.M | re.S)
    assert len(blocks) > 8
    for language, block in blocks:
        if language == "python":
            exec(block, {"open": lambda name: open(tmp_path / name)})
            continue
        for line in block.splitlines():
            program, script, *flags = shlex.split(line, comments=True)
            if script == "train.py":
                flags += [*SMOKE, "--name", "laptop", "--steps", "1", "--base_steps", "1"]
            code, out, err = call(tmp_path, script, *flags)
            assert program == "python" and code == 0, f"{line}\n{err}"


def test_an_exercise_has_a_question_a_prediction_a_command_minutes_an_outcome_and_an_open_question():
    exercises = re.split(r"^### ", COURSE, flags=re.M)[1:]
    assert len(exercises) == 10
    for text in exercises:
        parts = "*Question.*", "*Predict.*", "```", "*Minutes.*", "*Look at*", "<details>", "*Open question.*"
        assert all(part in text for part in parts), text
