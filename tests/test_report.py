"""Reports: intervals and verdicts against hand computations, and the files that a study's log becomes."""
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from data import COPAIN_TASKS, write_json_lines
from results import report
from results.report import Estimate, Log

BASE = dict(ppl_target=10.0, copain=90.0, copain_restricted=91.0, gain=40.0, label_target=60.0,
            label_ppl_target=2.0, shift_l2=0.0, tokens_target=0)
SOUND = dict(ppl_target=5.0, copain=85.0, copain_restricted=86.0, gain=38.0, label_target=90.0,
             label_ppl_target=1.2, shift_l2=2.0, tokens_target=100)
COLLAPSED = dict(early=5.0, copain=20.0, copain_restricted=30.0, gain=1.0, label_target=51.0,
                 label_ppl_target=3.0, shift_l2=40.0)
TWO = {"target": COLLAPSED, "target+english": {}}


def rows_of(arms, seeds=3):
    """Rows at steps 0, 10, 100. arms: {name: what differs from SOUND at the end}; early: Copain at 10."""
    rows = []
    for arm, given in arms.items():
        for seed in range(seeds):
            end = SOUND | given
            early = end | {"copain": end.get("early", end["copain"]), "tokens_target": 10}
            for step, metrics in ((0, BASE), (10, early), (100, end)):
                metrics = metrics | dict(arm=arm, seed=seed, step=step, data_seed=seed, bench_seed=7)
                metrics["ppl_target"] += 0.01 * seed
                rows.append(metrics | {"copain_tasks": dict.fromkeys(COPAIN_TASKS, metrics["copain"])})
    return rows


def judged(rows, study="main"):
    return {v["id"]: v["verdict"] for v in report.verdicts(Log(rows), study)}


def write_study(folder, rows, preset="laptop", logs=(), **more):
    """A study's folder as train.py leaves it. more: settings."""
    settings = dict(preset=preset, steps=100, device="cpu", dtype="float32") | more
    info = dict(study="main", question="Why?", pairs=[["target+english", "target"]], judge=[], x={}, lines={},
                judge_best=False, figure="step", left_out=[], settings=settings, machines=["CPU, 2 cores"],
                arms={row["arm"]: dict(lr_scale=1.0, base="") for row in rows}, bases={"": {}},
                commits=["abc"], logs=logs)
    report.write_study(folder, rows, info)
    return folder


def test_intervals_against_the_closed_form_of_means_and_of_ratios_end_where_values_can():
    for values, low, high in (
            ([0.0, 1.0], -5.853, 6.853),      # s = 0.7071, t(1) = 12.706, 12.706 * 0.7071 / 1.4142 = 6.353
            ([1, 2, 3, 4, 5], 1.037, 4.963),  # s = 1.5811, t(4) = 2.776, 2.776 * 1.5811 / 2.2361 = 1.963
            ([2.0] * 7, 2.0, 2.0), ([3.0], 3.0, 3.0)):
        e = Estimate.of(values)
        assert (e.low, e.high) == pytest.approx((low, high), abs=1e-3)
    e = Estimate.geometric([1.0, 4.0])  # logs 0 and 1.3863: s = 0.9803, 12.706 * 0.9803 / 1.4142 = 8.807
    assert (e.mean, math.log(e.high)) == pytest.approx((2.0, math.log(2) + 8.807), abs=1e-3)
    assert Estimate.geometric([1.0, 4.0], least=1).low == 1 and Estimate.of([99, 100, 95], 0, 100).high == 100


def test_the_quantiles_are_students_by_the_integral_of_its_density():
    for n, t in enumerate(report.T_975, 1):  # n degrees of freedom
        x = (np.arange(100_000) + 0.5) * t / 100_000
        norm = math.gamma((n + 1) / 2) / (math.sqrt(n * math.pi) * math.gamma(n / 2))
        assert norm * np.mean((1 + x * x / n) ** (-(n + 1) / 2)) * t == pytest.approx(0.475, abs=3e-5)


def test_pairing_by_run_takes_the_spread_between_runs_out_of_a_difference():
    rows = rows_of({"a": {}, "b": {}}, seeds=4)
    for row in rows:
        row["copain"] = 10.01 * row["seed"] + (5 if row["arm"] == "a" else 0)
    gap, a = Log(rows).difference("copain", "a", "b"), Log(rows).estimate("a", "copain")
    assert gap.mean == pytest.approx(5) and gap.high - gap.low < 0.1 and a.high > 30


def test_an_effect_its_absence_and_its_reverse_are_told_apart():
    arms, no = TWO | {"curriculum": {}, "ema": {}}, "not reproduced"
    assert list(judged(rows_of(arms)).values()) == ["reproduced"] * 6
    null = judged(rows_of(dict.fromkeys(arms, {})))  # then nothing is left to repair
    assert list(null.values()) == ["reproduced", no, no, no, "inconclusive", "inconclusive"]
    reverse = judged(rows_of({"target": {"ppl_target": 9.0, "shift_l2": 1.0}, "target+english": COLLAPSED}))
    assert [reverse[claim] for claim in ("C2", "C3", "C4")] == [no] * 3
    other = judged(rows_of(TWO | {"target": COLLAPSED | {"ppl_target": 6.0}}))
    little = judged(rows_of(dict.fromkeys(TWO, {"ppl_target": 8.0})))  # too little was learned
    assert (other["C1"], little["C1"]) == (no, "inconclusive")


def test_half_an_effect_and_half_a_repair_are_partly():
    half = judged(rows_of(TWO | {"target": dict(copain=20.0, label_target=51.0, shift_l2=3.0)}))
    assert [half[claim] for claim in ("C2", "C3", "C4")] == ["partly"] * 3
    weak = dict(copain=60.0, copain_restricted=80.0, label_target=51.0)
    arms = TWO | {"curriculum": weak, "ema": {"ppl_target": 6.0}}  # all but the perplexity
    assert judged(rows_of(arms))["C5"] == judged(rows_of(arms))["C6"] == "partly"
    none = {"curriculum": dict(copain=30.0, copain_restricted=40.0, label_target=51.0)}
    assert judged(rows_of(arms | none))["C5"] == "not reproduced"


def test_each_part_of_a_repair_has_its_own_word_and_without_a_task_no_repair_is_reproduced():
    for label, te, word in ((55, 51, "no clear gap"), (55, 90, "no"), (75, 90, "in part"), (85, 90, "yes"),
                            (58.99999999999999, 60.99999999999999, "yes")):  # a gap of 10, closed to 80%
        arms = TWO | {"target+english": dict(label_target=te), "ema": dict(ppl_target=6.0, label_target=label)}
        words = f"language learned: no, ICL kept: yes, task emerged: {word}"
        assert report.judge_repair(Log(rows_of(arms)), "ema")[2] == words
    rows = [{key: x for key, x in row.items() if key != "label_target"} for row in rows_of(TWO | {"ema": {}})]
    verdict, _, words = report.judge_repair(Log(rows), "ema")
    assert (verdict, words) == ("partly", "language learned: yes, ICL kept: yes, task emerged: not measured")


def test_early_is_the_first_tenth_of_the_steps_and_the_loss_at_half_the_language_is_told_beside_it():
    rows = rows_of(TWO, seeds=1)  # log perplexity: 10, 5, 5; half-way to step 10, Copain is half-way to 5
    assert "of the base's is 6 at its lowest early on, 53 when half" in report.judge_c2(Log(rows))[1]


def test_noise_across_a_bound_a_base_without_icl_and_two_runs_are_inconclusive():
    rows = rows_of(TWO)
    for row in rows[:9]:  # of target
        row["ppl_target"] *= (0.9, 1.0, 1.2)[row["seed"]]
    assert judged(rows)["C1"] == judged([row | {"gain": 0.0} for row in rows])["C2"] == "inconclusive"
    assert {judged(rows_of(TWO, seeds=2))[claim] for claim in ("C1", "C2", "C3", "C4")} == {"inconclusive"}
    assert judged(rows_of({"target": {}}))["C1"] == judged([])["C1"] == "not run"


def test_c7_wants_a_smaller_shift_and_a_higher_perplexity_at_every_rank():
    arms = {"target": {}} | dict.fromkeys(report.RANKS, {"ppl_target": 5.5, "shift_l2": 1.0})
    assert judged(rows_of(arms), "constraints") == {"C7": "reproduced"}
    assert judged(rows_of(arms | {"lora-64": {"shift_l2": 1.0}}), "constraints") == {"C7": "partly"}
    assert judged(rows_of(dict.fromkeys(arms, {})), "constraints") == {"C7": "not reproduced"}


@pytest.mark.parametrize("weak, strong, end, ppl, verdict", [
    (40, 5, 90, 9.0, "reproduced"), (12, 5, 90, 9.0, "partly"), (40, 5, 90, 1.2, "partly"),
    (20, 20, 90, 1.2, "not reproduced"), (40, 5, 55, 9.0, "inconclusive")])  # at 55 nothing emerges
def test_c8_wants_a_larger_gap_from_the_weaker_base(weak, strong, end, ppl, verdict):
    arms = dict.fromkeys(report.C8_ARMS, {"label_target": 90.0})
    arms |= {"seen-0": {"label_target": 90.0 - weak, "label_ppl_target": ppl},
             "seen-20": {"label_target": 90.0 - strong}, "seen-0+english": {"label_target": end}}
    assert judged(rows_of(arms), "languages") == {"C8": verdict}


def test_the_shift_at_equal_perplexity_or_equal_tokens_lies_between_two_evaluations():
    rows = rows_of({"a": {}}, seeds=1)
    for row, ppl, tokens, shift in zip(rows, (100.0, 10.0, 1.0), (0, 100, 200), (0.0, 2.0, 6.0)):
        row.update(ppl_target=ppl, tokens_target=tokens, shift_l2=shift)
    assert report.at_level(Log(rows), "a", "shift_l2", [10 ** 0.5]) == pytest.approx([4.0])
    assert report.at_level(Log(rows), "a", "shift_l2", [150], of="tokens_target") == pytest.approx([4.0])


def test_claims_are_judged_again_on_the_arms_that_a_study_names_and_at_the_best_rates():
    arms = TWO | {"target-lr-2": {"ppl_target": 4.0}, "target+english-lr-2": {"ppl_target": 6.0}}
    fields = {arm: dict(curriculum=arm.removesuffix("-lr-2"), lr_scale=1 + ("lr" in arm)) for arm in arms}
    log, judge = Log(rows_of(arms)), [{"target": "target-lr-2", "target+english": "target+english"}]
    named, best = report.variants(log, dict(judge=judge, judge_best=True, arms=fields)).values()
    assert named == best == judge[0] and log.renamed(named).arms == ["target", "target+english"]
    assert [report.judge_c2(x)[0] for x in (log, log.renamed(named))] == ["reproduced", "not reproduced"]


@pytest.mark.parametrize("held, words", [("C1 C5", ""), (
    "C1 C2", "Without English: same perplexity, in-context learning collapses"), ("C2 C5 C6", "Without English, "
    "in-context learning collapses; a curriculum or an EMA helps on this schedule")])
def test_the_title_of_a_figure_says_no_more_than_the_verdicts(held, words):
    kept = "language learned: yes, ICL kept: yes"
    claims = [dict(id=f"C{n}", verdict="reproduced" if f"C{n}" in held else "partly",
                   parts=kept if f"C{n}" in held and n > 4 else "") for n in range(1, 7)]
    assert report.headline(claims) == words


def test_verdicts_of_one_run_say_so_and_smoke_settings_give_none_in_the_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw_figure", None)
    folder = write_study(tmp_path / "main", rows_of(TWO, seeds=1))
    out, text = report.report(folder), (folder / "report.md").read_text()
    for shown in (out, text, report.findings(tmp_path)):
        shown = shown.replace("All three is reproduced", "")
        assert shown.count("reproduced") == shown.count("reproduced in this run") > 0
    out = report.report(write_study(folder, rows_of(TWO), preset="smoke"))
    assert "mean nothing" in out and "C1" not in out and "reproduced" not in out


def test_what_is_unfinished_is_named_and_the_rest_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw_figure", None)
    ended = [row for row in rows_of(TWO) if (row["arm"], row["seed"], row["step"]) != ("target", 1, 100)]
    begun = [row for row in rows_of({"ema": {}}) if row["step"] < 100]
    folder = write_study(tmp_path / "main", ended + begun)
    assert "means over 2 runs" in report.report(folder)
    assert "seed 1, which has not finished target.\n" in (folder / "report.md").read_text()
    for shown in (report.report(write_study(folder, begun)), (folder / "report.md").read_text()):
        assert report.UNFINISHED in shown and "| ema | 0    | 10 of 100 | 5.00 " in shown
    with pytest.raises(ValueError, match="no run has finished"):
        report.findings(tmp_path)


def test_a_study_in_progress_is_read_from_the_logs_of_its_jobs_and_drawn_as_far_as_they_are(tmp_path):
    rows = rows_of(TWO | {"ema": {}}, seeds=1)
    folder = write_study(tmp_path / "main", rows, logs=[f"seed0/{arm}.jsonl" for arm in (*TWO, "ema")])
    (tmp_path / "seed0").mkdir()
    for arm, n in (("target+english", 2), ("target", 3)):  # rows; ema has not begun
        write_json_lines(tmp_path / f"seed0/{arm}.jsonl", [row for row in rows if row["arm"] == arm][:n])
        assert str(folder / "figure.png") in report.report(folder)
        (folder / "figure.png").unlink()
    text = (folder / "report.md").read_text()
    for words in ("| target+english | 0    | 10 of 100 |", "No run has finished target+english, ema.",
                  "| target |", "missing: target+english"):  # the end of target, and a verdict that waits
        assert words in text


def test_two_studies_stand_side_by_side_if_they_measure_the_same_and_what_differs_is_named(tmp_path, call):
    write_study(tmp_path / "a", rows_of(TWO))
    rows = rows_of(TWO | {"target": SOUND, "mine": {}}, seeds=4)
    write_study(tmp_path / "b", [row | {"step": 2 * row["step"]} for row in rows], steps=200, lr=2.0)
    code, out, err = call(tmp_path, "results/report.py", "a", "b")
    assert code == 0 and "means over 3 runs" in out and "at equal target tokens" not in out, err
    for line in ("steps: 100 in A, 200 in B\nlr: None in A, 2.0 in B\n", "| base A, before ", "| target, A ",
                 "| target, B ", "| mine, B ", "| target, B against target, A "):
        assert f"\n{line}" in out
    write_study(tmp_path / "b", rows_of(TWO), block_size=64)
    with pytest.raises(ValueError, match="a and .*b are not evaluated alike: block_size"):
        report.compare(tmp_path / "a", tmp_path / "b")


def test_several_tasks_are_shown_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw_figure", None)
    tasks = {"supplement acc": 0.0, "supplement acc_norm": 25.0, "supplement items": 8,
             "supplement lost_shots": 3}  # "supplement" is no ppl
    report.report(write_study(tmp_path / "main", [row | tasks for row in rows_of(TWO)]))
    for words in ("the mean of supplement with 8 items", "| supplement acc % | supplement acc_norm % | supplement lost_shots |"):
        assert words in (tmp_path / "main/report.md").read_text()


def test_a_figure_that_fails_costs_no_table_and_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "start_figure", None)
    folder = write_study(tmp_path / "main", rows_of(TWO))
    out, text = report.report(folder), (folder / "report.md").read_text()
    assert "figure: not drawn (TypeError: " in out and "C2   " in out
    assert "| max_integer_in_list       | 90   | 20     | 85             |" in text  # base, target, + English


def test_the_file_itself_is_a_command_and_draws_even_if_it_inherits_a_backend_that_does_not_exist(tmp_path):
    folder = write_study(tmp_path / "main", rows_of(TWO, seeds=1))
    run = subprocess.run([sys.executable, report.__file__, folder], text=True, capture_output=True,
                         env=os.environ | {"MPLBACKEND": "nonsense", "PYTHONPATH": ""})
    assert (folder / "figure.png").stat().st_size > 10_000 and "C1" in run.stdout, run.stdout + run.stderr


@pytest.mark.parametrize("label, x, lines, kind", [
    ("", {}, {}, "ends"), ("target perplexity", {}, {"a": ["target"], "b": ["far", "far+english"]}, "lines"),
    ("step", {}, {}, "curves"), ("dose", {"target": 0}, {"a": ["not run"]}, "ends"),
    ("dose", {"target": 0, "far": 5}, {"a": ["target", "far", "not run"], "b": ["not run"]}, "lines"),
    ("peak-rate steps after English", {"target": 0, "far": 1000}, {"a": ["target", "far"]}, "lines"),
    ("two tokenizers", {"target": 1, "far": 1}, {"a": ["target"], "b": ["far"]}, "lines")])
def test_every_study_gets_the_picture_that_it_asks_for(tmp_path, monkeypatch, label, x, lines, kind):
    called, draw = [], getattr(report, f"draw_{kind}")
    monkeypatch.setattr(report, f"draw_{kind}", lambda *args: called.append(args) or draw(*args))
    log = Log(rows_of(dict.fromkeys(["target", "far", "far+english"], {})))
    arms = {"target": {"base": ""}, "far": {"base": "other" if label == "two tokenizers" else ""}}
    info = dict(question="Why?", arms=arms, bases={"": {}, "other": {"tokenizer": "joint"}}, figure=label)
    report.draw_figure(log, info | dict(x=x, lines=lines), tmp_path, "What it says")
    assert called and (tmp_path / "figure.png").stat().st_size > 10_000
    assert (label == "two tokenizers") == ("ppl_word_target" in str(called[0]))  # a token's is no measure


def test_findings_are_claims_then_studies_and_one_that_stands_twice_or_lacks_a_file_is_refused(tmp_path):
    write_study(tmp_path / "main", rows_of(TWO))
    short, _, claims, main, pairs = report.findings(tmp_path).split("\n\n")
    assert "| C1 English in " in short and "Copain with - without English 65.0 points |" in short
    assert "**reproduced**" in claims and "| main, 3 " in claims and "| C8 |" in claims
    assert main.startswith("**main: Why?** 3 runs: base seeds 0, 1, 2; CPU")
    assert "| target+english against target | 65.0 " in pairs and "| 100% " in pairs  # all of Copain's gap
    write_study(tmp_path / "again", rows_of(TWO))
    with pytest.raises(ValueError, match="holds the study main twice"):
        report.findings(tmp_path)
    with pytest.raises(ValueError, match="No such file.*rerun"):
        report.report(tmp_path)


@pytest.mark.parametrize("name, text, words", [
    ("metrics.jsonl", "{", "not JSON"), ("metrics.jsonl", "", "no run"), ("metrics.jsonl", "[]", "line 1"),
    ("settings.json", "{", "JSON"), ("settings.json", "[]", "lacks study")])
def test_a_damaged_file_is_one_line(tmp_path, name, text, words):
    folder = write_study(tmp_path / "main", rows_of(TWO))
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=words) as e:
        report.report(folder)
    assert str(folder) in str(e.value) and "rerun" in str(e.value) and "\n" not in str(e.value)


def test_a_report_tells_what_a_single_run_is_worth(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw_figure", None)
    rows = rows_of(TWO)
    rows[8].update(copain=84.0, copain_restricted=85.0)  # the end of target's last run shows no effect
    report.report(write_study(tmp_path / "main", rows))
    text = (tmp_path / "main/report.md").read_text()
    assert "Runs that reproduce a claim if they are judged alone: C1 3; C2 2; C3 3;" in text
    assert f"| target         | 0.2%       | {np.std([20, 20, 84], ddof=1):.1f} " in text
