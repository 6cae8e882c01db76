"""What came out of a study: verdicts on the paper's claims, tables and a figure, all from its log.

    python -m results.report runs/laptop/main    draws the report of a study again, or of one in progress
    python -m results.report runs/a/main runs/b/main    prints the arms of two studies side by side
    python -m results.report results             prints the claims and comparisons of all studies in a folder

train.py leaves two files in a study's folder. metrics.jsonl has a row per evaluation: arm, seed, step, and
what bench.evaluate() measured. settings.json says what was run, what to compare, what the figure shows, and
where the logs of the jobs are, which grow during a run.
"""
import copy
import json
import math
import os
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # for python results/report.py, without -m
from data import (COPAIN_TASKS, one_line_parser, read_json_lines, require, run_command, write_file,
                  write_json_lines, write_text)


# ----------------------------------------------------------------------------------------- the log of a study
class Log:
    """The rows of a study. A run is named by its seed. Only runs that finished every arm are compared; an arm
    that no run has finished is ignored. log(arm, key, step) is an array with a value per run, so a difference
    of two is paired by run."""

    def __init__(self, rows, label_chance=50.0, last=None, rules=COPAIN_TASKS):
        self.rows = {(row["arm"], row["seed"], row["step"]): row for row in rows}
        self.steps = sorted({row["step"] for row in rows})
        self.last = last or max(self.steps, default=0)
        begun = {}  # {(arm, seed): its rows}
        for row in rows:
            begun.setdefault((row["arm"], row["seed"]), []).append(row)
        self.running = {job: some for job, some in begun.items() if some[-1]["step"] != self.last}
        self.arms = list(dict.fromkeys(arm for arm, seed in begun if (arm, seed) not in self.running))
        self.rules, self.chance = rules, {"copain": copain_chance(rules), "label_target": label_chance}
        self.unfinished = {seed: [arm for arm in self.arms if (arm, seed, self.last) not in self.rows]
                           for seed in sorted({row["seed"] for row in rows})}  # {run: arms that are missing}
        self.seeds = [seed for seed, missing in self.unfinished.items() if self.arms and not missing]
        self.not_averaged = [f"Not averaged: seed {seed}, which has not finished {', '.join(missing)}."
                             for seed, missing in self.unfinished.items() if missing]
        self.tasks = [key.removesuffix(" acc") for key in (rows[0] if rows else {}) if key.endswith(" acc")]
        self.of_run, self.runs = "", f"means over {len(self.seeds)} runs [95% t interval over runs]"
        if len(self.seeds) == 1:
            self.of_run, self.runs = " in this run", "one run: no interval, so no measure of chance"

    def __call__(self, arm, key, step=None):
        step = self.last if step is None else step
        return np.array([self.rows[arm, seed, step][key] for seed in self.seeds])

    def estimate(self, arm, key, step=None):
        """The Estimate of a perplexity (by logarithms, at least 1), a shift, a gain, or a percentage."""
        values = self(arm, key, step)
        if key.startswith(("ppl", "label_ppl")):
            return Estimate.geometric(values, least=1)
        is_percent = not key.startswith(("shift", "gain")) and 0 <= values.min() <= values.max() <= 100
        return Estimate.of(values, 0, 100) if is_percent else Estimate.of(values)

    def difference(self, key, a="target+english", b="target"):
        """The Estimate of arm a - arm b at the end, paired by run; that of ratio() is of a / b."""
        return Estimate.of(self(a, key) - self(b, key))

    def ratio(self, key, a="target", b="target+english"):
        return Estimate.geometric(np.maximum(self(a, key), 1e-9) / np.maximum(self(b, key), 1e-9))

    def has(self, key):
        """Whether all first and last rows have this metric."""
        ends = [row for (_, _, step), row in self.rows.items() if step in (0, self.last)]
        return bool(ends) and all(key in row for row in ends)

    def renamed(self, names):
        """This log with some of its arms under other names. names: {new name: name in this log}."""
        log = copy.copy(self)
        log.arms = [new for new, old in names.items() if old in self.arms]
        log.rows = {(new, seed, step): row for new, old in names.items()
                    for (arm, seed, step), row in self.rows.items() if arm == old}
        return log


def copain_chance(rules):
    """Percent right by copying a random element of the list: 3 elements, 4 in the two odd-one-out rules."""
    return 100 * float(np.mean([1 / 4 if rule.endswith("_group") else 1 / 3 for rule in rules]))


def write_study(folder, rows, info):
    """Writes the log of a study, and what the report has to know of it besides."""
    folder.mkdir(exist_ok=True)
    write_json_lines(folder / "metrics.jsonl", rows)
    write_text(folder / "settings.json", json.dumps(info, indent=1))


def read_study(folder):
    """(Log, settings.json as a dict) of a folder. ValueError if they are damaged, or no arm has a row."""
    try:
        info = json.loads((folder / "settings.json").read_text())
        needed = "study question pairs judge judge_best figure x lines left_out arms bases settings"
        lacks = [key for key in needed.split() if key not in info]
        require(not lacks, f"settings.json lacks {', '.join(lacks)}")
        logs = [folder.resolve().parent / name for name in info.get("logs", [])]  # newer, if there
        files = [path for path in logs if path.exists()] or [folder / "metrics.jsonl"]
        rows, order = [row for path in files for _, row in read_json_lines(path)], list(info["arms"])
        rows.sort(key=lambda row: (order.index(row["arm"]), row["seed"], row["step"]))
        for key in ("machine", "commit"):
            info.setdefault(f"{key}s", list(dict.fromkeys(row[key] for row in rows if key in row)))
        rules = [key for row in rows[:1] for key in row["copain_tasks"] if "_zero-shot" not in key]
        rows = [row | row.get("copain_tasks", {}) for row in rows]
        chances = [x for row in rows[:1] for key, x in row.items() if key.endswith(" chance")]  # of --task
        log = Log(rows, float(np.mean(chances or 50)), info["settings"]["steps"], rules or COPAIN_TASKS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{folder} holds no study that can be read ({type(e).__name__}: {e}): rerun it, "
                         "which writes metrics.jsonl and settings.json, or give another folder") from None
    require(rows, f"{folder}: no run has evaluated an arm yet: wait, or rerun the study")
    return log, info


# -------------------------------------------------------------------------------------------------- intervals
# 97.5% quantiles of Student's t for 1 to 12 degrees of freedom; more count as 12: a bit wider than need be
T_975 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179]


@dataclass(frozen=True)
class Estimate:
    """A mean over runs with its 95% t interval. With one run the interval is the value itself."""
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values, least=-math.inf, most=math.inf):
        """Of a value per run. The interval is cut to [least, most], where values can be."""
        n, mean, half = len(values), float(np.mean(values)), 0.0
        if n > 1:
            half = float(T_975[min(n - 2, 11)] * np.std(values, ddof=1) / math.sqrt(n))
        return cls(mean, max(mean - half, least), min(mean + half, most))

    @classmethod
    def geometric(cls, values, least=0.0):
        """The geometric mean with its interval, computed on logarithms: for ratios and perplexities."""
        e = cls.of(np.log(values), most=700)  # math.exp(710) overflows
        return cls(math.exp(e.mean), max(math.exp(e.low), least), math.exp(e.high))

    def is_gap(self):
        return self.low > 0 and round(self.mean, 9) >= GAP  # 10.0 is no 9.999...

    def text(self, digits=1):
        form = f".{digits}f" if self.high < 1e5 else ".2g"  # as 1.3e+08, a perplexity a word of real text
        text = f"{self.mean:{form}}"
        return text if self.low == self.high else f"{text} [{self.low:{form}}, {self.high:{form}}]"


# --------------------------------------------------------------------------------------------------- verdicts
# Written down before the reported runs. "Above", "below" and "within" hold for the whole 95% interval, paired
# by run; sizes, as of a gap, are those of the mean. te is the arm target+english, t is the arm target.
PPL_MARGIN = 1.05    # C1, C5, C6: two perplexities within 5% count as equal
GAP = 10.0           # C2, C3: percentage points that count as a gap
LEARNED = 1.5        # C1: base / without must reach this, else too little was learned to compare
LABEL_RATIO = 2.0    # C3: label perplexity without English over that with
COLLAPSE = 0.5       # C2: Copain falls below this share of the base's within the first tenth of the steps
SHIFT_RATIO = 2.0    # C4: the paper reports 7 and 15
RECOVERED, IN_PART = 0.8, 0.5  # C5, C6: the share of the gap te - t to close: for yes, for in part
ABILITY = {"copain": "Copain", "copain_restricted": "Copain restricted to its list"}  # C2, C5, C6
TASK = {"label_target": "label task"}                                                 # C5, C6
T_TE = ["target", "target+english"]
RANKS = ["lora-1", "lora-4", "lora-16", "lora-64"]              # C7
SEEN = ["seen-0", "seen-0.1", "target", "seen-3", "seen-20"]    # C8: bases, the weakest in the language first
C8_ARMS = [base + english for base in SEEN for english in ("", "+english")]


def grade(all_of, any_of):
    """Reproduced if every condition of the first list holds, partly if one of the second does."""
    if all(all_of):
        return "reproduced"
    return "partly" if any(any_of) else "not reproduced"


def at_level(log, arm, key, levels, of="ppl_target"):
    """`key` where `of`, a falling perplexity or rising tokens, first reaches a level, interpolated between
    steps; if it never does, `key` at the last step. levels, and what is returned: (runs,)."""
    scale = np.log if of.startswith("ppl") else np.negative
    values = np.array([log(arm, key, step) for step in log.steps])                  # (steps, runs)
    falling = np.minimum.accumulate(scale([log(arm, of, step) for step in log.steps]))
    return np.array([np.interp(scale(level), falling[::-1, run], values[::-1, run])  # interp wants rising x
                     for run, level in enumerate(levels)])


def judge_c1(log):
    ppl, verdict = log.ratio("ppl_target"), "inconclusive"
    learned = [Estimate.geometric(log("target", k, 0) / log("target", k))  # 1e300: a language without spaces
               for k in ("ppl_target", "ppl_word_target") if log.has(k) and log("target", k, 0).max() < 1e300]
    if learned[0].mean >= LEARNED:  # models that learn nothing have equal perplexities, too
        if 1 / PPL_MARGIN < ppl.low and ppl.high < PPL_MARGIN:
            verdict = "reproduced"
        elif ppl.low > PPL_MARGIN or ppl.high < 1 / PPL_MARGIN:
            verdict = "not reproduced"
    return verdict, (f"perplexity without / with English {ppl.text(3)}; base / without "
                     f"{', per word '.join(ratio.text(2) for ratio in learned)}")


def judge_c2(log):
    base = log.estimate("target", "gain", 0)
    if base.low <= 0:
        return "inconclusive", f"the base has no ICL to lose: its gain from shots is {base.text()} points"
    early = [log("target", "copain", step) for step in log.steps if 0 < step <= max(1, log.last / 10)]
    worst = Estimate.of(100 * np.min(early, axis=0) / log("target", "copain", 0), least=0)
    gaps = {name: log.difference(key) for key, name in ABILITY.items()}
    conditions = [worst.high < 100 * COLLAPSE, *(gap.is_gap() for gap in gaps.values())]
    half_way = np.sqrt(log("target", "ppl_target", 0) * log("target", "ppl_target"))
    half = at_level(log, "target", "copain", half_way) / log("target", "copain", 0)
    points = "; ".join(f"{name} with - without English {gap.text()} points" for name, gap in gaps.items())
    return grade(conditions, conditions), (
        f"{points}; without English, Copain in % of the base's is {worst.text(0)} at its lowest early on, "
        f"{Estimate.of(100 * half).text(0)} when half of the language is learned")


def judge_c3(log):
    end, ppl = log.difference("label_target"), log.ratio("label_ppl_target")
    conditions = [end.is_gap(), ppl.low > 1 and ppl.mean >= LABEL_RATIO]
    before, without = log.estimate("target", "label_target", 0), log.estimate("target", "label_target")
    return grade(conditions, conditions), (
        f"label task with - without English: {end.text()} points; label perplexity without / with "
        f"{ppl.text(2)}; accuracy of the base {before.mean:.0f}%, without {without.mean:.0f}%, chance "
        f"{log.chance['label_target']:.0f}%")


def judge_c4(log):
    early = min(step for step in log.steps if step >= max(1, log.last // 10))
    first, final = (Estimate.of(log("target", "shift_l2", step) / log("target+english", "shift_l2", step))
                    for step in (early, log.last))
    slower = np.maximum(*(log(arm, "ppl_target", log.last) for arm in T_TE))  # what both arms reach
    equal = np.divide(*(at_level(log, arm, "shift_l2", slower) for arm in T_TE))
    further = first.low > 1 and final.low > 1
    return grade([further, min(first.mean, final.mean) >= SHIFT_RATIO], [further]), (
        f"L2 shift without / with English {final.text(2)}; at step {early} {first.text(2)}; at equal "
        f"perplexity {Estimate.of(equal).text(2)}")


def judge_repair(log, arm):
    """C5 and C6: what share of each gap does an arm close? A word for each part: see `found`."""
    shares, texts = {}, []
    for key, name in (ABILITY | TASK).items():
        if log.has(key) and log.difference(key).is_gap():
            gain, gap = log.difference(key, arm), log.difference(key)
            shares[key] = round(gain.mean / gap.mean, 9) if gain.low > 0 else 0  # 0.8 is no 0.7999...
            texts.append(f"{name} {gain.text()} points above target, {gain.mean / gap.mean:.0%} of the gap")
    if not shares:
        return "inconclusive", "English made no difference that could be recovered"
    ppl = log.ratio("ppl_target", arm)
    found = {"language learned": "yes" if ppl.high < PPL_MARGIN else "no"}
    for what, keys in (("ICL kept", ABILITY), ("task emerged", TASK)):
        share = min(shares.get(key, -1) for key in keys)
        nothing = "no clear gap" if all(log.has(key) for key in keys) else "not measured"
        found[what] = ("yes" if share >= RECOVERED else "in part" if share >= IN_PART else
                       "no" if share >= 0 else nothing)
    then = Estimate.of(at_level(log, "target", "copain", log(arm, "ppl_target")), 0, 100)
    texts.append(f"perplexity {arm} / with English {ppl.text(3)}; Copain of target where it first had that "
                 f"perplexity, or at its end, {then.text()}%, of {arm} {log.estimate(arm, 'copain').text()}")
    verdict = grade([word == "yes" for word in found.values()], [max(shares.values()) >= IN_PART])
    return verdict, "; ".join(texts), ", ".join(f"{what}: {word}" for what, word in found.items())


def judge_c7(log):
    conditions, texts = [], []
    for arm in RANKS:
        ppl, shift = log.ratio("ppl_target", arm, "target"), log.ratio("shift_l2", arm, "target")
        conditions.append(ppl.low > 1 and ppl.mean >= PPL_MARGIN and shift.high < 1)
        texts.append(f"{arm} {ppl.text(3)}, {shift.text(2)}")
    return grade(conditions, conditions), "perplexity and L2 shift, ratios to target's: " + "; ".join(texts)


def judge_c8(log):
    points, ratios = [], []  # what English gains from the weakest base and from the strongest
    for arm in (SEEN[0], SEEN[-1]):
        points.append(log(f"{arm}+english", "label_target") - log(arm, "label_target"))
        ratios.append(log(arm, "label_ppl_target") / log(f"{arm}+english", "label_ppl_target"))
    more, ratio = Estimate.of(points[0] - points[1]), Estimate.geometric(ratios[0] / ratios[1])
    end, chance = log.estimate(f"{SEEN[0]}+english", "label_target"), log.chance["label_target"]
    conditions, verdict = [more.is_gap(), ratio.low > 1 and ratio.mean >= LABEL_RATIO], "inconclusive"
    is_settled = any(conditions) or (more.high < GAP and ratio.high < LABEL_RATIO)
    if end.low > chance + GAP and is_settled:  # else nothing emerged to save, or a gap is still possible
        verdict = grade(conditions, conditions)
    return verdict, (
        f"label task, English's gain, weakest minus strongest base: {more.text()} points, the weakest with "
        f"English {end.text()}%; chance {chance:.0f}; {' and '.join(Estimate.of(x).text() for x in points)}; "
        f"label perplexity without / with, weakest / strongest: {ratio.text()}")


Claim = namedtuple("Claim", "id study arms judge text criterion")  # judge(log): a verdict, what was measured
CLAIMS = [
    Claim("C1", "main", T_TE, judge_c1, "English in the mixture hardly changes target perplexity",
          f"the ratio t / te is inside [1/{PPL_MARGIN}, {PPL_MARGIN}]; inconclusive if base / t is below "
          f"{LEARNED}"),
    Claim("C2", "main", T_TE, judge_c2, "without English, ICL collapses early",
          f"Copain of t falls below {COLLAPSE:.0%} of the base's in the first 10% of the steps, and te ends "
          f"at least {GAP:g} points above t, above 0, on Copain and on Copain restricted to its list; one of "
          "the three is partly"),
    Claim("C3", "main", T_TE, judge_c3, "without English, the task in the target language does not emerge",
          f"label perplexity t / te above 1 and at least {LABEL_RATIO}, and accuracy of te at least {GAP:g} "
          "points above t, above 0; one is partly"),
    Claim("C4", "main", T_TE, judge_c4, "without English the parameters move further",
          f"L2 shift t / te above 1 and {SHIFT_RATIO:g} or more at 10% and at the end; above 1 is partly"),
    Claim("C5", "main", [*T_TE, "curriculum"], lambda log: judge_repair(log, "curriculum"),
          "curriculum: English in the first 10% of the steps is enough",
          f"language learned: perplexity at most {PPL_MARGIN - 1:.0%} above te's; ICL kept: {RECOVERED:.0%} "
          f"of the gap te - t closed on Copain and on Copain restricted to its list, above 0; task emerged: "
          f"{RECOVERED:.0%} of the label task's gap. All three is reproduced, half of one gap partly (the "
          "words `in part`, for half of each gap of a part, came after main's runs)"),
    Claim("C6", "main", [*T_TE, "ema"], lambda log: judge_repair(log, "ema"),
          "EMA of the weights, without English, is enough",
          "as C5; that a smaller rate without EMA does the same is proven in ema.py, see study averaging"),
    Claim("C7", "constraints", ["target", *RANKS], judge_c7,
          "LoRA limits the shift but also hinders learning the language",
          f"at every rank the L2 shift is below t's, and target perplexity above it, by {PPL_MARGIN - 1:.0%} "
          "or more; some rank is partly"),
    Claim("C8", "languages", C8_ARMS, judge_c8,
          "the weaker the base is in the target language, the more English matters",
          f"from the base that has seen none of the language, the gap te - t on the label task is {GAP:g} "
          f"points larger than from the one that has seen 20%, above 0, and label perplexity t / te "
          f"{LABEL_RATIO:g} times as large, above 1; one is partly; inconclusive if te of the weakest base "
          f"ends within {GAP:g} points of chance, or if neither holds and the intervals allow either")]


def verdicts(log, study="main"):
    """A dict per claim of a study: id, claim, criterion, verdict, parts (of C5 and C6, which sum them up) and
    number (the main one ends at the first semicolon). A claim whose arms are missing is `not run`."""
    found = []
    for claim in [claim for claim in CLAIMS if claim.study == study]:
        missing = [arm for arm in claim.arms if arm not in log.arms]
        if claim.id in ("C3", "C8") and not log.has("label_target") and not missing:
            missing = ["no task in the target language"]
        number = f"missing: {', '.join(missing)}" if log.arms else "the study has not been run"
        verdict, parts = "not run", []
        if not missing:
            verdict, number, *parts = claim.judge(log)
            if len(log.seeds) == 2:  # their t interval is too wide to tell "no" from "unknown"
                verdict, number = "inconclusive", f"two runs settle nothing; {number}"
        found.append({"id": claim.id, "claim": claim.text, "criterion": claim.criterion, "verdict": verdict,
                      "parts": ", ".join(parts), "number": number})
    return found


def single_runs(log, study):
    """{id of a claim: how many of the runs reproduce it when they are judged alone}."""
    counts = {claim.id: 0 for claim in CLAIMS if claim.study == study}
    for seed in log.seeds:
        alone = copy.copy(log)
        alone.seeds = [seed]
        for v in verdicts(alone, study):
            counts[v["id"]] += v["verdict"] == "reproduced"
    return counts


def headline(claims):
    """What the verdicts of `main` say, in a line; '' if they do not say that ICL collapses."""
    holds = [v["id"] for v in claims if v["verdict"] == "reproduced"]
    if "C2" not in holds:
        return ""
    same = ": same perplexity," if "C1" in holds else ","
    text = f"Without English{same} in-context learning collapses"
    kept = {v["id"] for v in claims if "language learned: yes, ICL kept: yes" in v["parts"]}
    remedies = [name for claim, name in (("C5", "a curriculum"), ("C6", "an EMA")) if claim in kept]
    return f"{text}; {' or '.join(remedies)} helps on this schedule" if remedies else text


def variants(log, info):
    """{heading: {arm of a claim: arm in its place}}: where a study judges its claims, or main's, again."""
    found = {f"Verdicts on {', '.join(arms.values())}": arms for arms in info["judge"]}
    if info["judge_best"]:
        arms, best = info["arms"], {}
        for name in log.arms:
            if arms[name]["lr_scale"] == 1:
                rates = [arm for arm in log.arms if arms[arm] | {"lr_scale": 1} == arms[name]]
                best[name] = min(rates, key=lambda arm: log.estimate(arm, "ppl_target").mean)
        found["Verdicts where each arm has the rate of its lowest target perplexity"] = best
    return found


# ----------------------------------------------------------------------------------------------------- tables
# A new metric or task is a key of the row of bench.evaluate(), with a heading here. It is a percentage, or
# what its name says (Log.estimate). main's figure shows what is in PANELS, which must be in every row.
HEADINGS = {  # of a report's first table; a terminal shows the first seven metrics
    "ppl_target": "target ppl", "copain": "Copain %", "gain": "gain from shots",
    "label_target": "label task %", "label_ppl_target": "label ppl", "label_english": "label, English %",
    "shift_l2": "L2 shift", "cloze_target": "cloze task %", "ppl_word_target": "target ppl a word",
    "ppl_char_target": "target ppl a character", "shift_relative": "relative shift",
    "shift_embeddings": "L2, embeddings", "shift_blocks": "L2, blocks",
    "shift_target_tokens": "L2, target's tokens", "shift_english_tokens": "L2, English-only tokens",
    "ppl_english": "English ppl", "cloze_english": "cloze, English %",
    "copain_not_in_list": "not in list %", "copain_wrong_element": "wrong element %"}
CONTROLS = {
    "copain": "Copain %", "copain_restricted": "restricted to the list %", "copain_zero-shot": "zero-shot %",
    "copain_shuffled": "shuffled answers %", "five": "five rules %", "five_zero-shot": "five, zero-shot %",
    "recall": "recall probe %", "held_out_rule": "held-out rule %", "held_out_restricted": "restricted %",
    "label_target": "label task %", "label_target_zero-shot": "zero-shot %",
    "label_target_shuffled": "shuffled labels %"}
POINTS = {"copain": "Copain, points", "copain_restricted": "restricted", "gain": "gain from shots",
          "label_target": "label task", "cloze_target": "cloze task"}
SHARES = {"copain": "of Copain's gap", "copain_restricted": "of its gap", "label_target": "of the task's"}
RATIOS = {"ppl_target": "target ppl", "label_ppl_target": "label ppl", "shift_l2": "L2 shift"}


def markdown(heading, rows):
    """A table. Columns are padded, up to a width of 40, so that a terminal can show it, too."""
    width = [min(40, max(map(len, column))) for column in zip(heading, *rows)]
    table = [heading, ["-" * max(3, w) for w in width], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, width)) + " |" for row in table)


def claims_table(claims, columns, of_run):
    """Claims as verdicts() gives them. columns: {field of a claim: title}; of_run: Log.of_run."""
    shown = [v | {"verdict": f"**{v['verdict']}{of_run}**{v['parts'] and ': ' + v['parts']}"} for v in claims]
    return markdown(list(columns.values()), [[v[field] for field in columns] for v in shown])


def starts_and_ends(log, arms):
    """{title: (arm, step)}: what the arms started from, then every arm's end. arms: of settings.json."""
    found = {}
    for arm in log.arms:
        found.setdefault(f"base {arms[arm]['base']}, before" if arms[arm]["base"] else "base", (arm, 0))
    return found | {arm: (arm, log.last) for arm in log.arms}


def ends_table(log, arms, headings, most=99, spread=False):
    """The first `most` metrics of what the arms started from, then of every arm's end: means with intervals,
    or, with spread, standard deviations over the runs, of perplexities in percent."""
    keys, rows = [key for key in headings if log.has(key)][:most], []
    for name, (arm, step) in starts_and_ends(log, arms).items():
        rows.append([name])
        for key in keys:
            text = log.estimate(arm, key, step).text(2 if "ppl" in key or "shift" in key else 1)
            if spread:
                values = log(arm, key, step)
                text = f"{np.std(values, ddof=1):.1f}" if "ppl" not in key else (
                    f"{100 * np.std(np.log(values), ddof=1):.1f}%")
            rows[-1].append(text)
    return markdown(["arm", *(headings[key] for key in keys)], rows)


def pairs_table(log, pairs):
    """Arm a against arm b at the end, or where b has seen as many target tokens; shares of English's gain."""
    points, ratios, shares = ([key for key in keys if log.has(key)] for keys in (POINTS, RATIOS, SHARES))
    rows, equal = [], log.has("tokens_target") and len(log.steps) > 2  # else there is no curve to read
    for a, b in pairs:
        if a not in log.arms or b not in log.arms or a == b:
            continue
        gains = {key: log.difference(key, a, b) for key in points}
        rows.append([f"{a} against {b}", *(gain.text() for gain in gains.values()),
                     *(log.ratio(key, a, b).text(3) for key in ratios)])
        if equal:
            then = at_level(log, b, "ppl_target", log(a, "tokens_target"), of="tokens_target")
            rows[-1].append(Estimate.geometric(log(a, "ppl_target") / then).text(3))
        english = b.replace("target", "target+english")
        for key in shares:
            share = ""
            if english != b and english in log.arms and log.difference(key, english, b).is_gap():
                share = f"{gains[key].mean / log.difference(key, english, b).mean:.0%}"
            rows[-1].append(share)
    names = [f"{RATIOS[key]}, ratio" for key in ratios] + ["target ppl, ratio at equal target tokens"] * equal
    return markdown(["arms", *map(POINTS.get, points), *names, *map(SHARES.get, shares)], rows)


def running_table(log):
    """Where the arms stand that have begun and not ended."""
    keys, rows = [key for key in PANELS if log.has(key)], []
    for (arm, seed), (*_, row) in log.running.items():
        rows.append([arm, str(seed), f"{row['step']} of {log.last}", *(f"{row[key]:.2f}" for key in keys)])
    return markdown(["arm", "seed", "step", *(PANELS[key] for key in keys)], rows)


def rules_table(log, arms):
    """Percent right of every rule of Copain, with shots / without: before the CPT, and where arms end."""
    columns, rows = starts_and_ends(log, arms), []
    for rule in log.rules:
        rows.append([rule])
        for arm, step in columns.values():
            means = [log(arm, key, step).mean() for key in (rule, f"{rule}_zero-shot") if log.has(key)]
            rows[-1].append(" / ".join(f"{mean:.0f}" for mean in means))
    return markdown(["rule", *columns], rows)


# ----------------------------------------------------------------------------------------------------- report
SMOKE = "Smoke settings: every stage ran, the numbers mean nothing; next: python train.py"
UNFINISHED = "Unfinished: these arms have not ended, and means and verdicts are of finished runs alone"


def provenance(log, info):
    """Runs, seeds, machines and commits, in a line."""
    s, seeds = info["settings"], ", ".join(map(str, log.seeds))
    text = f"{len(log.seeds)} runs: base seeds {seeds}" if len(log.seeds) > 1 else f"1 run: base seed {seeds}"
    machines, commits = "; ".join(info["machines"]), ", ".join(info["commits"])
    return f"{text}; {machines}, {s['device']}, {s['dtype']}; commit {commits}"


def report_text(log, info, claims):
    """report.md as text."""
    arms, columns = info["arms"], {"id": "id", "claim": "claim", "verdict": "verdict", "number": "measured"}
    text = [f"# Study `{info['study']}`", f"**{info['question']}**"]
    if info["settings"]["preset"] == "smoke":
        text.append(f"**{SMOKE}.**")
    if log.running:
        text += [f"**{UNFINISHED}.**", running_table(log)]
    if not log.seeds:
        return "\n\n".join([*text, "![figure](figure.png)\n"])
    text.append(f"{provenance(log, info)}; {log.runs}; at step {log.last} of the CPT.")
    text += [f"Left out: {why}" for why in info["left_out"]]
    if set(arms) - set(log.arms):
        text.append(f"No run has finished {', '.join(arm for arm in arms if arm not in log.arms)}.")
    text += [*log.not_averaged, "![figure](figure.png)",
             *(["![curves](curves.png)"] if info["figure"] == "step" else []),
             ends_table(log, arms, HEADINGS),
             f"Chance: Copain {log.chance['copain']:.1f}% by copying a random element of the list, label "
             f"task {log.chance['label_target']:.0f}%, cloze task 25%."]
    if log.tasks:
        keys = [f"{task} {key}" for task in log.tasks for key in ("acc", "acc_norm", "lost_shots")]
        items = [f"{task} with {log(log.arms[0], task + ' items')[0]} items" for task in log.tasks]
        text += ["## Task by task", f"The label task is the mean of {', '.join(items)}. acc: the likeliest "
                 "choice is right; acc_norm: the likeliest per byte; lost_shots: items with fewer.",
                 ends_table(log, arms, {key: key if key.endswith("shots") else f"{key} %" for key in keys})]
    if claims:
        with_criterion = {"id": "id", "claim": "claim", "criterion": "criterion"} | columns
        text += ["## Verdicts", "Criteria were fixed before the run; te: target+english, t: target. Above, "
                 "below and within hold for the whole 95% interval, paired by run; sizes are of means.",
                 claims_table(claims, with_criterion, log.of_run)]
    if len(log.seeds) > 2:
        text += ["## What a single run is worth", "Standard deviation over the runs, of perplexities in "
                 "percent:", ends_table(log, arms, HEADINGS, 7, spread=True)]
        alone = "; ".join(f"{claim} {n}" for claim, n in single_runs(log, info["study"]).items())
        text += [f"Runs that reproduce a claim if they are judged alone: {alone}."] if alone else []
    for title, chosen in variants(log, info).items():
        judged, these = info["study"] if claims else "main", log.renamed(chosen)
        if not these.arms:  # they were not run
            continue
        names = [f"{chosen[new]} (for {new})" if chosen[new] != new else new for new in these.arms]
        text += [f"## {title}", f"The claims of `{judged}`, judged on {', '.join(names)}.",
                 claims_table(verdicts(these, judged), columns, log.of_run)]
        if info["judge_best"]:  # the other pairs are of arms at one rate
            text.append(pairs_table(these, info["pairs"]))
    others = [(arm, "target") for arm in log.arms if not (arms[arm]["base"] or arm in sum(info["pairs"], []))]
    text += ["## Arm against arm", "Differences and ratios at the end, paired by run; the gap is what "
             "target+english gains over target.", pairs_table(log, info["pairs"] + others),
             "## Is it in-context learning?", "Without shots, or with shuffled answers, a model can only use "
             "what it knows without the context. Restricted: only the list's elements compete. Five rules: "
             "those that need shots. Recall probe: the query is one of the shots; chance 17%. Held-out rule: "
             "the last element, a rule that no corpus has; chance 33%.", ends_table(log, arms, CONTROLS),
             "## Rule by rule", "Percent right with three shots / without; means over the runs.",
             rules_table(log, arms)]
    return "\n\n".join([*text, "## Arms and settings",
                        f"```json\n{json.dumps({'arms': arms, **info['settings']}, indent=1)}\n```\n"])


def report(folder):
    """Writes report.md and figure.png into a study's folder, from its settings.json and log alone. Returns
    the text that ends the study, even if the figure cannot be drawn."""
    folder = Path(folder)
    log, info = read_study(folder)
    claims = verdicts(log, info["study"]) if log.seeds else []
    smoke = info["settings"]["preset"] == "smoke"
    write_text(folder / "report.md", report_text(log, info, claims))
    figure = folder / "figure.png"
    try:
        title = SMOKE if smoke else headline(claims) or info["question"]
        draw_figure(log, info, folder, f"Unfinished. {title}" if log.running else title)
    except Exception as e:  # whatever it is, the table of a long study must not be lost with it
        figure = f"not drawn ({type(e).__name__}: {' '.join(str(e).split())})"
    parts = [SMOKE if smoke else info["question"]]
    if log.running:
        parts += [UNFINISHED, running_table(log)]
    if log.seeds:
        parts += [ends_table(log, info["arms"], HEADINGS, 7), log.runs, *log.not_averaged]
    found = [f"{v['id']} {v['verdict'] + log.of_run:>14}: {v['claim']} ({v['parts']}{v['parts'] and '; '}"
             f"{v['number']})" for v in claims if v["verdict"] != "not run"]
    if found and not smoke:
        parts.append("\n".join(found))
    parts.append(f"report: {folder / 'report.md'}\nfigure: {figure}")
    return "\n\n".join(parts)


def findings(results):
    """Claims and verdicts of the studies in a folder, in short for README, then in full; then comparisons."""
    logs, claims, parts = {}, [], []
    for path in sorted(Path(results).glob("*/metrics.jsonl")):
        log, info = read_study(path.parent)
        require(log.seeds, f"{path.parent}: no run has finished all arms: rerun the study to go on")
        require(info["settings"]["preset"] != "smoke", f"{path.parent}: {SMOKE}")
        require(info["study"] not in logs, f"{results} holds the study {info['study']} twice: move one away")
        logs[info["study"]] = log
        parts += [f"**{info['study']}: {info['question']}** {provenance(log, info)} "
                  f"([report]({path.parent.name}/report.md), [figure]({path.parent.name}/figure.png))",
                  pairs_table(log, info["pairs"])]
    require(logs, f"{results} is no folder of a study, and holds none: give runs/NAME or runs/NAME/STUDY")
    for study in dict.fromkeys(claim.study for claim in CLAIMS):
        log = logs.get(study, Log([]))
        claims += [v | {"study": f"{study}, {len(log.seeds)}", "verdict": v["verdict"] + log.of_run}
                   for v in verdicts(log, study)]
    short = [v | {"claim": f"{v['id']} {v['claim']}", "number": v["number"].split(";")[0]} for v in claims
             if not v["verdict"].startswith("not run")]
    columns = {"claim": "claim", "verdict": "verdict", "number": "mean [95% interval over runs]",
               "study": "study, runs"}
    return "\n\n".join([claims_table(short, columns, ""), "In full:",
                        claims_table(claims, {"id": ""} | columns, ""), *parts])


ALIKE = ("seed cognates tokenizer vocab_size block_size bench_seed copain_items label_items "
         "validation_blocks shots source task").split()  # with these in common, two studies measure the same


def compare(a, b):
    """The arms of two folders side by side, then arm against arm, then what differs in their settings."""
    studies, rows, arms = {"A": read_study(a), "B": read_study(b)}, [], {}
    for letter, (log, info) in studies.items():
        for (arm, _, step), row in log.rows.items():
            if arm in log.arms and step in (0, log.last):  # the two may differ in their steps
                rows.append(row | {"arm": f"{arm}, {letter}", "step": min(step, 1)})
        arms |= {f"{n}, {letter}": {"base": f"{letter} {x['base']}".strip()} for n, x in info["arms"].items()}
    both, what = [arm for arm in studies["A"][0].arms if arm in studies["B"][0].arms], []
    for _, info in studies.values():
        hashes = {key: x for key, x in info.get("contents", {}).items() if key != "init file"}
        given = {key: x for key, x in info["settings"].items() if key not in ("name", "source", "task")}
        what.append(given | {arm: info["arms"][arm] for arm in both} | hashes)
    differ = [key for key in what[0] | what[1] if what[0].get(key) != what[1].get(key)]
    other = [key for key in differ if key.split()[0] in ALIKE]
    log = Log(rows)
    require(log.seeds, f"{a} and {b} have no finished run of the same seed")
    require(not other, f"{a} and {b} are not evaluated alike: {', '.join(other)} must be the same")
    return "\n\n".join([
        f"A: {a}\nB: {b}\n{log.runs}", ends_table(log, arms, HEADINGS, 7),
        pairs_table(log, [(f"{arm}, B", f"{arm}, A") for arm in both]),
        "\n".join(f"{key}: {what[0].get(key)} in A, {what[1].get(key)} in B" for key in differ)])


# ---------------------------------------------------------------------------------------------------- figures
X_SCALES = {"peak-rate steps after English": "symlog", "rate, as a share of main's": "log"}  # see studies.py
FIRST = ["ppl_target", "copain"]  # the panels of main's figure; the others are in curves.png
PANELS = {"ppl_target": "Target perplexity", "copain": "Copain, %", "gain": "Gain from shots, points",
          "copain_restricted": "Copain, restricted, %", "label_target": "Label task (target), %",
          "label_ppl_target": "Label perplexity", "shift_l2": "L2 shift", "ppl_english": "English perplexity"}
CHANCE = {"copain": "a random element", "copain_restricted": "chance", "label_target": "chance"}
ARM_STYLE = {"target": ("#D55E00", "o"), "target+english": ("#0072B2", "s"), "curriculum": ("#009E73", "^"),
             "ema": ("#CC79A7", "D")}  # colours that colour-blind readers tell apart (Okabe and Ito)
COLOURS = ["#332288", "#999933", "#882255", "#888888", "#E69F00", "#56B4E9", "#000000", "#8B4513", "#44AA99"]


def style(name, i=0):
    """(colour, marker) of an arm, or of a line of arms. One whose name contains an arm of main has that arm's
    colour, and a cross; lines with crosses are dashed."""
    main = next((arm for arm in reversed(ARM_STYLE) if arm in name), "")
    colour, marker = ARM_STYLE.get(main, (COLOURS[i % len(COLOURS)], "vP*"[i // len(COLOURS) % 3]))
    return colour, "x" if main and name != main else marker


def set_ticks(axis):
    """Three or more labelled ticks: even ones; on a logarithmic axis also 1, 2, 5, 10 ... or powers of 10."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
    low, high = axis.get_view_interval()
    locator = MaxNLocator(5, min_n_ticks=3, steps=[1, 2, 2.5, 5, 10])
    if axis.get_scale() == "log" and high > 10 * low:
        locator = LogLocator(subs=(1, 2, 5) if high < 2000 * low else (1,))
    axis.set(major_locator=locator, major_formatter="{x:g}", minor_locator=NullLocator())


def start_figure(log, title, note, keys, height):
    """A figure to be read at 800 pixels of width, and [(axes, metric)]. note: of several runs, below it."""
    from matplotlib.figure import Figure  # here, because only figures need it
    if len(log.seeds) > 1:
        note = f"means of {len(log.seeds)} runs, base seeds {log.seeds[0]} to {log.seeds[-1]}; {note}"
    else:
        note = f"one run, base seed {log.seeds[0]}" if log.seeds else "no run has finished"
    keys = [key for key in keys if log.has(key)]
    columns = 2 if len(keys) > 3 else len(keys)
    rows = math.ceil(len(keys) / columns)
    fig = Figure(figsize=(8, rows * height + 1), dpi=150, layout="constrained")
    fig.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.55 / fig.get_figheight()))
    fig.text(0.01, 1 - 0.08 / fig.get_figheight(), title, fontsize=10.5, va="top")
    fig.text(0.01, 1 - 0.32 / fig.get_figheight(), note, fontsize=9, va="top")
    return fig, [(fig.add_subplot(rows, columns, i), key) for i, key in enumerate(keys, 1)]


def draw_figure(log, info, folder, title):
    """The picture that the study asks for (Study in results/studies.py). title: its message."""
    os.environ["MPLBACKEND"] = "Agg"  # before matplotlib is imported: one from Jupyter may not exist here
    path, label, xs, keys = folder / "figure.png", info["figure"], info["x"], [*FIRST, "label_target"]
    if label == "target perplexity":
        xs, keys = {arm: log.estimate(arm, "ppl_target").mean for arm in log.arms}, keys[1:]
    elif X_SCALES.get(label) == "symlog":
        keys = keys[1:]
    elif len({info["bases"][arm["base"]].get("tokenizer") for arm in info["arms"].values()}) > 1:
        keys[0] = "ppl_word_target"  # perplexities a token cannot be compared
    lines = []
    (folder / "curves.png").unlink(missing_ok=True)  # of this study in progress
    for i, (name, arms) in enumerate(info["lines"].items()):
        points = [(arm, log.last) for arm in sorted({*arms} & {*log.arms}, key=xs.get)]
        if points:
            lines.append((name, *style(name, i), [xs[arm] for arm, _ in points], points, log))
    if label == "step" or log.running:
        draw_curves(log, path, title, FIRST)
        draw_curves(log, folder / "curves.png", info["question"], [key for key in PANELS if key not in FIRST])
    elif lines:
        draw_lines(log, path, title, keys, lines, label)
    else:
        draw_ends(log, path, title)


def draw_lines(log, path, title, keys, lines, label, ticks=()):
    """A panel per metric, with means and intervals. lines: [(name, colour, marker, xs, (arm, step) of every
    x, the Log to read)]. label: of x. ticks: [(x, text)], or none to have them chosen."""
    fig, panels = start_figure(log, title, "bars: 95% intervals", keys, 2.2)
    named = len(panels) == 2 and len(lines) < 5  # each line, at its end
    ticks = [(x, f"{x:g}") for x in lines[0][3]] if X_SCALES.get(label) == "log" else ticks
    for ax, key in panels:
        ends = []
        for name, colour, marker, xs, points, source in lines:
            found = [source.estimate(arm, key, step) for arm, step in points]
            means, bars = [e.mean for e in found], [(e.mean - e.low, e.high - e.mean) for e in found]
            ax.errorbar(xs, means, np.transpose(bars), color=colour, marker=marker, ms=4, lw=2,
                        ls="--" if marker == "x" else "-", elinewidth=0.8, label=name)
            ends.append((means[-1], name, colour))
        ax.set(xlabel=label, xscale=X_SCALES.get(label, "linear"), yscale="log" if "ppl" in key else "linear")
        ax.set_title((HEADINGS | PANELS)[key], loc="left", fontsize=10)
        if ticks:
            ax.set_xticks(*zip(*ticks))
            ax.minorticks_off()
        set_ticks(ax.yaxis)
        if named:
            name_lines(ax, ends)
        if key in CHANCE:
            ax.axhline(y := log.chance[key.removesuffix("_restricted")], color="0.4", ls=":")
            ax.text(0.01, y, CHANCE[key], fontsize=9, va="bottom", transform=ax.get_yaxis_transform())
    if not named and len(lines) > 1:
        fig.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)
    write_file(path, lambda file: fig.savefig(file, format="png"))


def name_lines(ax, ends):
    """Writes names of lines right of their ends, apart and not below the axis. ends: [(y, name, colour)]."""
    up, down = [-1.0], [2.0]
    for y, *_ in sorted(ends):
        up.append(max(ax.transAxes.inverted().transform(ax.transData.transform((0, y)))[1], up[-1] + 0.1))
    for y, *_ in sorted(ends, reverse=True):
        down.append(min(ax.transAxes.inverted().transform(ax.transData.transform((0, y)))[1], down[-1] - 0.1))
    for (_, name, colour), low, high, edge in zip(sorted(ends), up[1:], down[:0:-1], np.arange(0.03, 1, 0.1)):
        ax.text(1.02, max((low + high) / 2, edge), name, color=colour, va="center", transform=ax.transAxes)


def draw_curves(log, path, title, keys):
    """Metrics along the steps, every arm in a colour of its own. Arms that have not ended are drawn as far as
    they are, with crosses."""
    lines = []
    for i, arm in enumerate(dict.fromkeys([*log.arms, *(arm for arm, _ in log.running)])):
        colour, marker = style(arm, i)
        curves = [(arm, marker, log.steps, log)] if arm in log.arms and log.seeds else []
        curves += [(f"{arm}, unfinished", "x", [row["step"] for row in rows], Log(rows))
                   for (name, _), rows in log.running.items() if name == arm]
        for name, mark, steps, source in curves:
            xs = [math.log10(1 + step) for step in steps]  # step 0 has a place on this axis
            lines.append((name, colour, mark, xs, [(arm, step) for step in steps], source))
    shown = [0, 1, *(10 ** k for k in range(1, 6) if 4 * 10 ** k < log.last), log.last]
    ticks = [(math.log10(1 + step), f"{step}") for step in shown]
    window = f"; curriculum: English until {log.last // 10}" if "curriculum" in log.arms else ""
    draw_lines(log, path, title, keys, lines, f"step{window}", ticks)


def draw_ends(log, path, title):
    """The figure of the other studies: an arm a row, with its interval."""
    keys, n = ["ppl_target", "copain", "label_target"], len(log.arms)
    fig, panels = start_figure(log, title, "bars: 95% intervals; ticks: runs", keys, 0.7 + 0.24 * n)
    for ax, key in panels:
        for i, arm in enumerate(log.arms):
            runs, e, (colour, marker) = log(arm, key), log.estimate(arm, key), style(arm, i)
            ax.plot(runs, np.full(len(runs), i), "|", color="0.4")
            ax.plot([e.low, e.mean, e.high], [i, i, i], color=colour, marker=marker, markevery=[1])
        if key in CHANCE:
            ax.vlines(log.chance[key], -0.5, n - 0.5, color="0.4", ls=":")
            ax.text(log.chance[key], n - 0.4, CHANCE[key], fontsize=9, ha="center", va="top")
            ax.set_xlim(min(0, ax.get_xlim()[0]), 103)
        ax.set(xscale="log" if "ppl" in key else "linear", ylim=(n + 1.2, -0.7))
        ax.set_title(PANELS[key], loc="left", fontsize=10)
        ax.set_yticks(range(n), log.arms if key == keys[0] else [""] * n)
        set_ticks(ax.xaxis)
    write_file(path, lambda file: fig.savefig(file, format="png"))


# ----------------------------------------------------------------------------------------------- command line
if __name__ == "__main__":
    parser = one_line_parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of a study, or the one that holds several studies")
    parser.add_argument("other", type=Path, nargs="?", default=None, help="a study to compare it with")
    flags = parser.parse_args()
    one = report if (flags.folder / "settings.json").exists() else findings
    run_command(lambda: print(compare(flags.folder, flags.other) if flags.other else one(flags.folder)))
