"""The benchmark, and the report that is drawn from a run's log.

Copain (Contextual Pattern Inference, Elhady et al. 2025): seven rules over short lists, no instruction, three shots,
exact match of the greedily decoded answer. It measures in-context learning (ICL) alone: no word of any language occurs.
The label task is the downstream task: name the kind of a noun by a letter, given six shots. It needs ICL and the
meaning of words; in the target language only target text can have taught the words.

    python bench.py --show                        every kind of prompt, to put on a slide
    python bench.py runs/laptop/seed1337/ema.pt      benchmarks a checkpoint
    python bench.py --report runs/laptop          draws report.md, summary.json and figure.png from metrics.jsonl again
"""
import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch

from data import (CATEGORIES, COPAIN_TASKS, HELD_OUT_FORMAT, LETTERS, NOUNS, Tokenizer, World, draw_list, is_reserved,
                  label_lines, list_line)
from model import load_checkpoint, model_from_checkpoint


# ------------------------------------------------------------------------------------------------------------ items
@dataclass(frozen=True)
class Item:
    """One question: shots and query are lists of words or numbers, with their answers; one of `choices` is right."""
    task: str
    shots: tuple       # of (elements, answer)
    elements: tuple
    answer: str
    choices: tuple

    def prompt(self, shots=None):
        """The text before the answer, in the format that no training document has."""
        lines = [*(self.shots if shots is None else shots), (self.elements, "")]
        if self.task in COPAIN_TASKS:
            return "\n".join(list_line(elements, answer, HELD_OUT_FORMAT) for elements, answer in lines)
        return label_lines([(word, answer) for (word,), answer in lines], HELD_OUT_FORMAT).rstrip(" ")

    def shuffled_shots(self):
        """The shots with wrong answers of the right form: what they still teach is the format, not the rule."""
        rng = Random(self.prompt())
        if self.task in COPAIN_TASKS:
            return tuple((elements, rng.choice([e for e in elements if e != answer])) for elements, answer in self.shots)
        answers = rng.sample([a for _, a in self.shots], len(self.shots))
        return tuple((elements, answer) for (elements, _), answer in zip(self.shots, answers))


def copain_items(world, n_per_task=150, n_shots=3, seed=0):
    """Copain's seven tasks, every list from the reserve that training never draws from (data.is_reserved)."""
    items = []
    for task in COPAIN_TASKS:
        rng, seen = Random(f"copain/{task}/{seed}"), set()
        while len(seen) < n_per_task:
            lines = []
            while len(lines) <= n_shots:
                elements, answer = draw_list(rng, task, world.max_integer)
                if is_reserved(elements) and tuple(elements) not in [e for e, _ in lines]:
                    lines.append((tuple(elements), answer))
            if tuple(lines) not in seen:
                seen.add(tuple(lines))
                items.append(Item(task, tuple(lines[:-1]), *lines[-1], choices=lines[-1][0]))
    return items


def label_items(lang, twin, n_items=300, n_shots=6, seed=0):
    """The label task over the nouns of `lang` that are not cognates in `twin`; the same seed gives the same items in
    any language, translated, if `twin` is the same."""
    rng, items = Random(f"labels/{seed}"), []
    nouns = {c: [n for n in NOUNS[c] if twin.name == "english" or not twin.is_cognate(n)] for c in CATEGORIES}
    for _ in range(n_items):
        letter = dict(zip(rng.sample(CATEGORIES, 2), rng.sample(LETTERS, 2)))
        kinds = rng.sample([c for c in letter] * (n_shots // 2), n_shots) + [rng.choice(list(letter))]
        words = {c: iter(rng.sample(nouns[c], n_shots // 2 + 1)) for c in letter}
        lines = [((lang.words[next(words[c])],), letter[c]) for c in kinds]
        items.append(Item("label", tuple(lines[:-1]), *lines[-1], choices=tuple(letter.values())))
    return items


def copain_chance():
    """Percent right by copying a random element of the list: 3 elements, 4 in the odd-one-out tasks."""
    return 100 * sum(1 / (4 if task.endswith("_group") else 3) for task in COPAIN_TASKS) / len(COPAIN_TASKS)


# ---------------------------------------------------------------------------------------------------------- scoring
def _batches(rows, device, max_tokens=4096):
    """Yields (indices, idx (B, T), lengths (B,)): rows of similar length together, padded on the right, where the
    causal mask keeps the padding out of every answer."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    while order:
        size = max(1, max_tokens // len(rows[order[min(len(order), 64) - 1]]))
        chunk, order = order[:size], order[size:]
        idx = torch.zeros(len(chunk), len(rows[chunk[-1]]), dtype=torch.long)
        for b, i in enumerate(chunk):
            idx[b, :len(rows[i])] = torch.tensor(rows[i])
        yield chunk, idx.to(device), torch.tensor([len(rows[i]) for i in chunk], device=device)


@torch.no_grad()
def greedy_answers(model, tok, prompts, max_new_tokens):
    """Decodes all prompts (lists of token ids) greedily up to the end of the line or of the document; a list of
    strings, where None is an answer that did not end within max_new_tokens."""
    device = next(model.parameters()).device
    ends = {i for i, token in enumerate(tok.ranks) if b"\n" in token} | {tok.eot}
    rows, open_rows = [list(p) for p in prompts], list(range(len(prompts)))
    for _ in range(max_new_tokens):
        following = {}
        for chunk, idx, lengths in _batches([rows[i] for i in open_rows], device):
            logits = model(idx, last=lengths - 1)[0]                                         # (B, V)
            following |= {open_rows[i]: t for i, t in zip(chunk, logits.argmax(-1).tolist())}
        for i, t in following.items():
            rows[i].append(t)
        open_rows = [i for i in open_rows if following[i] not in ends]
        if not open_rows:
            break
    return [tok.decode(row[len(p):-1]).strip() if row[-1] in ends else None for row, p in zip(rows, prompts)]


@torch.no_grad()
def choice_logprobs(model, prompts, choices):
    """Summed log-probability (nats) of each choice after its prompt; one list of floats per prompt.

        row fed         p0  p1  p2  c0            prompt p, choice c; its last token is never fed
        logits predict  p1  p2  c0  c1            so token j of the choice is scored at position len(p) - 1 + j

    Choices that differ in their last token alone share a row: with one-token choices, a prompt is run once.
    """
    device = next(model.parameters()).device
    rows, wanted = {}, []  # wanted: per row, (prompt number, choice number, first position, choice)
    for n, (prompt, cs) in enumerate(zip(prompts, choices)):
        for k, c in enumerate(cs):
            row = rows.setdefault(tuple(prompt) + tuple(c[:-1]), len(rows))
            if row == len(wanted):
                wanted.append([])
            wanted[row].append((n, k, len(prompt) - 1, c))
    scores = [[0.0] * len(cs) for cs in choices]
    for chunk, idx, _ in _batches(list(rows), device):
        logp = model(idx)[0].float().log_softmax(-1)                                         # (B, T, V)
        where = [(b, pos + j, t, n, k) for b, i in enumerate(chunk) for n, k, pos, c in wanted[i]
                 for j, t in enumerate(c)]
        b, pos, t = torch.tensor([w[:3] for w in where], device=device).T
        for (*_, n, k), value in zip(where, logp[b, pos, t].tolist()):
            scores[n][k] += value
    return scores


@torch.no_grad()
def perplexity(model, ids, n_blocks=128):
    """exp of the mean cross-entropy over the first n_blocks whole blocks of ids, a one-dimensional array."""
    T = model.config.block_size
    n = min(n_blocks, (len(ids) - 1) // T)
    if n < 1:
        raise ValueError(f"validation data has {len(ids)} tokens; one block of {T} needs {T + 1}")
    xy = torch.from_numpy(np.asarray(ids[:n * T + 1], dtype=np.int64)).to(next(model.parameters()).device)
    losses = [model(x, y)[1].item() * len(x) for x, y in zip(xy[:-1].view(n, T).split(32), xy[1:].view(n, T).split(32))]
    return math.exp(min(sum(losses) / n, 700))


@torch.no_grad()
def parameter_shift(model, base):
    """(mean over the parameter tensors of the L2 norm of theta - theta_base, as in the paper's release; and the norm
    of the whole difference over the norm of theta_base). base: {name: tensor}."""
    names, params = zip(*model.named_parameters())
    before = [base[n] for n in names]
    shift = torch.stack(torch._foreach_norm(torch._foreach_sub(params, before)))
    size = torch.stack(torch._foreach_norm(before))
    return shift.mean().item(), (shift.norm() / size.norm()).item()


class Benchmark:
    """All items of a world, encoded once; calling it with a model gives the metrics of one row of the log.

    `label_<language>` is the accuracy of the label task, `label_ppl_<language>` the perplexity of the right label.
    Accuracies and shares are in percent.
    """

    def __init__(self, world, tok, n_copain=150, n_label=300, seed=0):
        self.tok, languages = tok, world.languages()
        target = next(lang for name, lang in languages.items() if name != "english")
        self.copain = copain_items(world, n_copain, seed=seed)
        self.copain_third = [x for i, x in enumerate(self.copain) if i % n_copain < math.ceil(n_copain / 3)]
        self.label = {name: label_items(lang, target if name == "english" else lang, n_label, seed=seed)
                      for name, lang in languages.items()}
        self.cache = {}
        self.longest = max(len(p) + max(map(len, c)) for items in (self.copain, *self.label.values())
                           for p, c in zip(*self.encode(items, "few-shot"))) + 1

    def encode(self, items, condition):
        """Prompts and choices of items as token ids; encoded jointly, then split, as in training."""
        key = tuple(items), condition
        if key not in self.cache:
            prompts, choices = [], []
            for item in items:
                text = item.prompt({"few-shot": None, "zero-shot": (), "shuffled": item.shuffled_shots()}[condition])
                prompts.append([self.tok.eot, *self.tok.encode(text)])
                choices.append([self.tok.encode(f"{text} {c}")[len(prompts[-1]) - 1:] for c in item.choices])
            self.cache[key] = prompts, choices
        return self.cache[key]

    def copain_scores(self, model, items, condition="few-shot"):
        """Exact match overall and per task, and the errors split into: no element of the list, a wrong element."""
        prompts, choices = self.encode(items, condition)
        longest = max(len(c) for cs in choices for c in cs)
        answers = greedy_answers(model, self.tok, prompts, longest + 1)
        right = np.array([a == item.answer for a, item in zip(answers, items)])
        listed = np.array([a in item.elements for a, item in zip(answers, items)])
        task = np.array([item.task for item in items])
        return {"copain": 100 * float(right.mean()), "copain_not_in_list": 100 * float((~listed).mean()),
                "copain_wrong_element": 100 * float((listed & ~right).mean()),
                "copain_tasks": {t: 100 * float(right[task == t].mean()) for t in COPAIN_TASKS}}

    def choice_scores(self, model, items, condition="few-shot"):
        """(accuracy in percent, perplexity of the right choice) of likelihood-scored multiple choice."""
        scores = choice_logprobs(model, *self.encode(items, condition))
        right = [item.choices.index(item.answer) for item in items]
        accuracy = np.mean([int(np.argmax(s)) == r for s, r in zip(scores, right)])
        return 100 * float(accuracy), math.exp(min(-np.mean([s[r] for s, r in zip(scores, right)]), 700))

    def __call__(self, model, full=True):
        """Metrics of a model. `full` adds the controls: zero-shot, shuffled answers, restricted to the list; without
        it, a third of each of Copain's tasks stands for all."""
        row = self.copain_scores(model, self.copain if full else self.copain_third)
        for name, items in self.label.items():
            row[f"label_{name}"], row[f"label_ppl_{name}"] = self.choice_scores(model, items)
        if full:
            row["copain_restricted"] = self.choice_scores(model, self.copain)[0]
            for condition in ("zero-shot", "shuffled"):
                row[f"copain_{condition}"] = self.copain_scores(model, self.copain, condition)["copain"]
                for name, items in self.label.items():
                    row[f"label_{name}_{condition}"] = self.choice_scores(model, items, condition)[0]
        return row

    def check_disjoint(self, sources):
        """Raises ValueError if the list of a benchmark item, or the start of a prompt, occurs in a source {name: ids}.

        Formats do not hide a leak: separators are dropped from the corpus first, so that a list is found in any of them.
        """
        drop = [t for s in (",", ";", " |") for t in self.tok.encode(s)]
        lists = {tuple(self.tok.encode("".join(f" {e}" for e in elements)))
                 for item in self.copain for elements, _ in (*item.shots, (item.elements, ""))}
        prompts = {tuple(p[1:13]) for items in (self.copain, *self.label.values())
                   for p in self.encode(items, "few-shot")[0]}
        for name, ids in sources.items():
            ids = np.asarray(ids)
            found = _find(ids[~np.isin(ids, drop)], lists) or _find(ids, prompts)
            if found:
                raise ValueError(f"benchmark leak: {self.tok.decode(found)!r} of a benchmark prompt occurs in the "
                                 f"training source {name!r}; draw training lists with data.draw_training_list")


def _find(ids, needles):
    """The first of the token tuples that occurs in ids, or None: by rolling hash, then by comparison."""
    for n in {len(needle) for needle in needles}:
        h = np.zeros(max(0, len(ids) - n + 1), dtype=np.uint64)
        for k in range(n):
            h = h * np.uint64(1000003) + ids[k:len(ids) - n + 1 + k].astype(np.uint64)
        group = np.array([needle for needle in needles if len(needle) == n], dtype=np.uint64)
        hashes = np.zeros(len(group), dtype=np.uint64)
        for k in range(n):
            hashes = hashes * np.uint64(1000003) + group[:, k]
        for i in np.flatnonzero(np.isin(h, hashes)):
            if tuple(ids[i:i + n].tolist()) in needles:
                return tuple(ids[i:i + n].tolist())
    return None


def evaluate(model, benchmark, validation, before, n_blocks=128, full=True):
    """The metrics of one row of the log: perplexities, benchmark, shift from `before` ({name: tensor})."""
    row = {f"ppl_{name}": perplexity(model, ids, n_blocks) for name, ids in validation.items()}
    row |= benchmark(model, full)
    row["shift_l2"], row["shift_relative"] = parameter_shift(model, before)
    return row


# ------------------------------------------------------------------------------------------ intervals over the seeds
# 97.5% quantiles of Student's t for 1 to 30 degrees of freedom
T_975 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
         2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042]


@dataclass(frozen=True)
class Estimate:
    """A mean over runs (one per seed) with its 95% t interval; with one run the interval is the value itself, which
    the report says."""
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values):
        values = np.asarray(list(values), dtype=float)
        n, mean = len(values), values.mean()
        half = T_975[min(n - 2, 29)] * values.std(ddof=1) / math.sqrt(n) if n > 1 else 0.0
        return cls(float(mean), float(mean - half), float(mean + half))

    def text(self, digits=1, factor=1):
        interval = f" [{self.low * factor:.{digits}f}, {self.high * factor:.{digits}f}]" if self.low < self.high else ""
        return f"{self.mean * factor:.{digits}f}{interval}"


class Log:
    """metrics.jsonl: one row per arm, seed and step; only seeds that finished every arm enter a comparison."""

    def __init__(self, rows):
        self.rows = rows
        self.arms = list(dict.fromkeys(row["arm"] for row in rows))
        self.last = max((row["step"] for row in rows), default=0)
        ended = {arm: {r["seed"] for r in rows if r["arm"] == arm and r["step"] == self.last} for arm in self.arms}
        self.seeds = sorted(set.intersection(*ended.values())) if ended else []

    def steps(self, arm):
        return sorted({r["step"] for r in self.rows if r["arm"] == arm})

    def at(self, arm, key, step=None):
        """{seed: value} of an arm at a step, by default the last one."""
        step = self.last if step is None else step
        return {r["seed"]: r[key] for r in self.rows
                if r["arm"] == arm and r["step"] == step and r["seed"] in self.seeds and key in r}

    def paired(self, f, *terms):
        """Estimate over seeds of f(values), each term being (arm, key) or (arm, key, step)."""
        columns = [self.at(*term) for term in terms]
        return Estimate.of(f(*(column[seed] for column in columns)) for seed in self.seeds)


# ---------------------------------------------------------------------------------------------------------- verdicts
# Written down before the reported runs. "Above" and "below" hold for the whole 95% interval over seeds, paired by seed,
# and for the mean where there is one seed only. te is the arm target+english, t is the arm target.
PPL_MARGIN = 1.05    # C1, C5, C6: two perplexities within 5% count as equal
GAP = 10.0           # C2, C3: percentage points that count as a gap
LABEL_RATIO = 1.2    # C3: label perplexity without English over that with
COLLAPSE = 0.5       # C2: Copain falls below this share of the base's within the first tenth of the steps
SHIFT_RATIO = 2.0    # C4: the paper reports 7 and 15
RECOVERED = 0.8      # C5, C6: share of the gap between t and te that a repair has to close; half of it is partly
CONTROL = 5.0        # C6: percentage points within which the arm low-lr counts as equal to ema


def judge_c1(log):
    ratio = log.paired(lambda t, te: math.log(t / te), ("target", "ppl_target"), ("target+english", "ppl_target"))
    margin = math.log(PPL_MARGIN)
    verdict = ("reproduced" if -margin < ratio.low and ratio.high < margin else
               "not reproduced" if ratio.low > margin or ratio.high < -margin else "inconclusive")
    text = Estimate(*map(math.exp, (ratio.mean, ratio.low, ratio.high))).text(3)
    return verdict, f"perplexity without / with English {text}"


def judge_c2(log):
    base = log.paired(lambda x: x, ("target", "copain", 0))
    if base.mean <= copain_chance():
        return "inconclusive", f"the base has no ICL to lose: Copain {base.text()}%"
    early = [s for s in log.steps("target") if 0 < s <= 0.1 * log.last]
    worst = Estimate.of(min(log.at("target", "copain", s)[seed] for s in early) / log.at("target", "copain", 0)[seed]
                        for seed in log.seeds)
    gap = log.paired(lambda te, t: te - t, ("target+english", "copain"), ("target", "copain"))
    collapse, lasting = worst.high < COLLAPSE, gap.low > 0 and gap.mean >= GAP
    verdict = "reproduced" if collapse and lasting else "partly" if collapse or lasting else "not reproduced"
    return verdict, (f"lowest early Copain without English {worst.text(0, 100)}% of the base's; "
                     f"at the end with - without {gap.text()} points")


def judge_c3(log):
    gap = log.paired(lambda te, t: te - t, ("target+english", "label_target"), ("target", "label_target"))
    ppl = log.paired(lambda t, te: math.log(t / te), ("target", "label_ppl_target"),
                     ("target+english", "label_ppl_target"))
    accuracy, label = gap.low > 0 and gap.mean >= GAP, ppl.low > 0 and ppl.mean >= math.log(LABEL_RATIO)
    verdict = "reproduced" if accuracy and label else "partly" if accuracy or label else "not reproduced"
    text = Estimate(*map(math.exp, (ppl.mean, ppl.low, ppl.high))).text(2)
    return verdict, f"accuracy with - without {gap.text()} points; label perplexity without / with {text}"


def judge_c4(log):
    early = min((s for s in log.steps("target") if s >= 0.1 * log.last), default=log.last)
    first, final = (log.paired(lambda t, te: t / te, ("target", "shift_l2", s), ("target+english", "shift_l2", s))
                    for s in (early, log.last))
    verdict = ("reproduced" if first.low > 1 and final.low > 1 and min(first.mean, final.mean) >= SHIFT_RATIO else
               "partly" if first.low > 1 and final.low > 1 else "not reproduced")
    return verdict, f"L2 shift without / with English {first.text(2)} at step {early}, {final.text(2)} at the end"


def judge_repair(log, arm):
    ppl = log.paired(lambda a, te: math.log(a / te), (arm, "ppl_target"), ("target+english", "ppl_target"))
    shares, gains = {}, {}  # share of the gap closed; whether the gain is above 0
    for key, name in (("copain", "Copain"), ("label_target", "downstream")):
        gain = log.paired(lambda a, t: a - t, (arm, key), ("target", key))
        gap = log.paired(lambda te, t: te - t, ("target+english", key), ("target", key))
        if gap.low > 0 and gap.mean >= GAP:
            shares[name], gains[name] = gain.mean / gap.mean, gain.low > 0
    if not shares:
        return "inconclusive", "English made no difference that could be recovered"
    closed = [name for name in shares if shares[name] >= RECOVERED and gains[name]]
    half = [name for name in shares if shares[name] >= 0.5 and gains[name]]
    equal = ppl.high < math.log(PPL_MARGIN)
    verdict = "reproduced" if equal and len(closed) == 2 else "partly" if half else "not reproduced"
    return verdict, ("share of the gap closed: " + ", ".join(f"{name} {100 * x:.0f}%" for name, x in shares.items()) +
                     f"; target perplexity over that with English {math.exp(ppl.mean):.3f}")


def judge_c6(log):
    verdict, text = judge_repair(log, "ema")
    if "low-lr" in log.arms:
        control = log.paired(lambda e, low: e - low, ("ema", "copain"), ("low-lr", "copain"))
        same = abs(control.mean) < CONTROL
        text += (f"; EMA - learning rate x 0.08 on Copain {control.text()} points: "
                 + ("the small learning rate does the same" if same else "more than the small learning rate"))
    return verdict, text


CLAIMS = [  # id, claim, criterion, arms that it needs, judge
    ("C1", "English in the mixture does not change target perplexity",
     f"the ratio t / te is inside [1/{PPL_MARGIN}, {PPL_MARGIN}]", ("target", "target+english"), judge_c1),
    ("C2", "without English, ICL collapses early",
     f"Copain of t falls below {COLLAPSE:.0%} of the base's in the first 10% of the steps, and te ends at least "
     f"{GAP:g} points above t, above 0; one of the two is partly", ("target", "target+english"), judge_c2),
    ("C3", "that hurts downstream prompts in the target language",
     f"accuracy of te at least {GAP:g} points above t, above 0, and label perplexity t / te above 1 and at least "
     f"{LABEL_RATIO}; one is partly",
     ("target", "target+english"), judge_c3),
    ("C4", "without English the parameters move further",
     f"L2 shift t / te above 1 and {SHIFT_RATIO:g} or more at 10% and at the end; above 1 is partly",
     ("target", "target+english"), judge_c4),
    ("C5", "curriculum: English in the first 10% of the steps is enough",
     f"closes {RECOVERED:.0%} of the gap te - t on Copain and downstream, gain above 0, perplexity within "
     f"{PPL_MARGIN - 1:.0%} of te; half of one gap is partly", ("target", "target+english", "curriculum"),
     lambda log: judge_repair(log, "curriculum")),
    ("C6", "EMA of the weights, without English, is enough", "as C5, and said beside it: whether the control low-lr is "
     f"within {CONTROL:g} points of Copain", ("target", "target+english", "ema"), judge_c6),
]


def verdicts(log):
    """One dict per claim: id, claim, criterion, verdict, number; inconclusive where an arm is missing."""
    out = []
    for id_, claim, criterion, arms, judge in CLAIMS:
        missing = [arm for arm in arms if arm not in log.arms]
        if missing or not log.seeds:
            verdict, number = "inconclusive", f"not run to the end: {', '.join(missing) or 'some arms'}"
        else:
            verdict, number = judge(log)
        out.append(dict(id=id_, claim=claim, criterion=criterion, verdict=verdict, number=number))
    return out


# ------------------------------------------------------------------------------------------------- report and figure
COLUMNS = [  # heading, key, digits
    ("target ppl", "ppl_target", 2), ("English ppl", "ppl_english", 2), ("Copain %", "copain", 1),
    ("not in list %", "copain_not_in_list", 1), ("wrong element %", "copain_wrong_element", 1),
    ("downstream %", "label_target", 1), ("label ppl", "label_ppl_target", 2), ("same in English %", "label_english", 1),
    ("label ppl, English", "label_ppl_english", 2), ("L2 shift", "shift_l2", 2), ("relative shift", "shift_relative", 2)]
BASELINES = [
    ("Copain %", "copain", 1), ("restricted to the list %", "copain_restricted", 1),
    ("zero-shot %", "copain_zero-shot", 1), ("shuffled answers %", "copain_shuffled", 1),
    ("downstream %", "label_target", 1), ("zero-shot %", "label_target_zero-shot", 1),
    ("shuffled labels %", "label_target_shuffled", 1)]


def _table(log, columns):
    lines = ["| arm | " + " | ".join(heading for heading, *_ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for arm, step in [(log.arms[0], 0), *((arm, None) for arm in log.arms)]:
        cells = [Estimate.of(log.at(arm, key, step).values()).text(digits) for _, key, digits in columns]
        lines.append(f"| {'base' if step == 0 else arm} | " + " | ".join(cells) + " |")
    return lines


def report(run):
    """Writes report.md, summary.json and figure.png of a run folder from its settings.json and metrics.jsonl, and
    nothing else; returns the text that ends the study. Raises ValueError if there is no finished run to report."""
    run = Path(run)
    try:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        info = json.loads((run / "settings.json").read_text())
    except OSError as e:
        raise ValueError(f"{run} is not the folder of a finished run ({e.strerror}: {e.filename}): run train.py "
                         "first") from None
    except ValueError as e:
        raise ValueError(f"{run}: metrics.jsonl or settings.json is damaged ({e}): rerun the study, which writes them "
                         "again from its checkpoints") from None
    log = Log(sorted(rows, key=lambda r: (list(info["arms"]).index(r["arm"]), r["seed"], r["step"])))
    if not log.seeds:
        raise ValueError(f"{run}: no seed has finished all of its arms: rerun the study to continue it")
    s, machine, n = info["settings"], info["machine"], len(log.seeds)
    smoke = ["**Smoke settings: every stage ran, the numbers mean nothing.**", ""] * (s["preset"] == "smoke")
    spread = f"means over {n} seeds [95% t interval]" if n > 1 else "one seed: no interval, so no measure of chance"
    main, claims = _table(log, COLUMNS), verdicts(log)
    verdict_lines = [f"{v['id']} {v['verdict']:>14}: {v['claim']} ({v['number']})" for v in claims]
    steps = log.steps(log.arms[0])
    tasks = {t: Estimate.of(v[t] for v in log.at(log.arms[0], "copain_tasks", 0).values()).text()
             for t in COPAIN_TASKS}
    text = "\n".join([
        f"# Study `{s['name']}`", "", *smoke,
        f"Seeds {', '.join(map(str, log.seeds))} (of the world, the base and the data), benchmark seed "
        f"{s['bench_seed']}; {spread}; at step {log.last} of the CPT.", "",
        "![figure](figure.png)", "", *main, "",
        f"Chance: Copain {copain_chance():.1f}% by copying a random element of the list, downstream 50%.", "",
        "## Verdicts", "", "Criteria were fixed before the run (bench.py, CLAIMS); te is the arm target+english, t the "
        "arm target. With several seeds a comparison must hold for the whole 95% interval, paired by seed.", "",
        "| id | claim | criterion | verdict | measured |", "|---|---|---|---|---|",
        *(f"| {v['id']} | {v['claim']} | {v['criterion']} | **{v['verdict']}** | {v['number']} |" for v in claims), "",
        "## Is it in-context learning?", "", "With no shots, or with shots whose answers are shuffled, what is left is "
        "what a model knows without the context; restricted to the list, only its elements compete.", "",
        *_table(log, BASELINES), "",
        "## Copain along the way", "", "| arm | " + " | ".join(map(str, steps)) + " |", "|---" * (len(steps) + 1) + "|",
        *(f"| {arm} | " + " | ".join(f"{np.mean(list(log.at(arm, 'copain', x).values())):.0f}" for x in steps) + " |"
          for arm in log.arms), "",
        "Base, per task: " + ", ".join(f"{t} {x}" for t, x in tasks.items()) + ".", "",
        "## Tokens per source", "", "| arm | target | English |", "|---|---|---|",
        *(f"| {arm} | " + " | ".join(f"{np.mean(list(log.at(arm, f'tokens_{x}').values())):,.0f}"
                                     for x in ("target", "english")) + " |" for arm in log.arms), "",
        "## Settings", "", f"{machine['processor']}, {machine['threads']} threads, device {s['device']}, {s['dtype']}, "
        f"torch {machine['torch']}, commit {info['commit']}.", "", "```json", json.dumps(s, indent=1), "```", ""])
    (run / "report.md").write_text(text)
    summary = {"seeds": log.seeds, "step": log.last, "meaningful": s["preset"] != "smoke", "claims": claims, "arms": {
        arm: {key: asdict(Estimate.of(log.at(arm, key).values())) for _, key, _ in COLUMNS} for arm in log.arms}}
    (run / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    draw(log, run / "figure.png", smoke)
    return "\n".join([*smoke, _aligned(main), "", spread, "", *verdict_lines, "", f"figure: {run / 'figure.png'}"])


def _aligned(table):
    """A markdown table with its columns padded, for a terminal, and turned: the arms as columns."""
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in table if not line.startswith("|---")]
    cells = list(zip(*cells))
    width = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, width)))
                     for row in cells)


PANELS = [  # title, key, log scale
    ("Target perplexity", "ppl_target", True), ("Copain, % (in-context learning)", "copain", False),
    ("Downstream in the target language, %", "label_target", False),
    ("Label perplexity, target language", "label_ppl_target", True),
    ("Shift from the base, mean L2", "shift_l2", False), ("English perplexity", "ppl_english", True)]
COLOURS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe and Ito: for everybody
DASHES = ["-", "-", "-", "-", (0, (4, 2)), (0, (1, 1)), (0, (5, 1, 1, 1))]


def draw(log, path, smoke=False):
    """The figure: each metric against the step, every arm a line with its name at its end, every seed a thin one."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(2, 3, figsize=(16, 8))
    for ax, (title, key, log_scale) in zip(axes.flat, PANELS):
        ends = []
        for i, arm in enumerate(log.arms):
            steps, colour = log.steps(arm), COLOURS[i % len(COLOURS)]
            curves = np.array([list(log.at(arm, key, x).values()) for x in steps])       # (steps, seeds)
            ax.plot(steps, curves.mean(1), color=colour, ls=DASHES[i % len(DASHES)], lw=2.2)
            if len(log.seeds) > 1:
                ax.plot(steps, curves, color=colour, lw=0.6, alpha=0.5)
            ends.append((curves[-1].mean(), arm, colour))
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(0, log.last * 6)
        ticks = [0, *(10 ** k for k in range(6) if 10 ** k <= log.last)]
        ax.set_xticks(ticks, [str(t) for t in ticks])
        ax.minorticks_off()
        if log_scale:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
            ax.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        level = {"copain": copain_chance(), "label_target": 50.0}.get(key)
        if level is not None:
            ax.set_ylim(0, 103)
            ax.axhline(level, color="0.5", ls=":", lw=1)
            ax.text(0.05, level + 1, "chance", color="0.4", fontsize=9)
        # names beside the ends of the lines, pushed apart where they would overlap
        to_axes = ax.transData + ax.transAxes.inverted()
        placed = []
        for value, arm, colour in sorted(ends):
            y = to_axes.transform((1, value))[1]
            placed.append(max(y, 0.03, placed[-1] + 0.06 if placed else 0))
        for y, (_, arm, colour) in zip(placed, sorted(ends)):
            ax.text(to_axes.transform((log.last * 1.15, 1))[0], y - max(0, placed[-1] - 0.98), arm, color=colour,
                    fontsize=10, va="center", transform=ax.transAxes)
        ax.set_title(title, loc="left", fontsize=11)
        ax.set_xlabel("step of the continued pretraining", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    n = len(log.seeds)
    fig.suptitle("Smoke settings: these numbers mean nothing" if smoke else
                 f"Continued pretraining of a small GPT on a new language, {n} seed{'s' * (n > 1)}"
                 + (": their means; a thin line is a seed" if n > 1 else ""), x=0.01, ha="left", fontsize=13)
    fig.tight_layout()
    fig.savefig(path, dpi=110)
    plt.close(fig)


# ------------------------------------------------------------------------------------------------------ command line
def show(world):
    """Prints one prompt of every task, with its answer, and how the controls change it."""
    languages = world.languages()
    items = {item.task: item for item in copain_items(world, 1)}
    for name, lang in languages.items():
        twin = next(l for l in languages.values() if l.name != "english") if name == "english" else lang
        items[f"label task, {name}"] = label_items(lang, twin, 1)[0]
    for task, item in items.items():
        print(f"--- {task}   answer: {item.answer}   choices: {' '.join(item.choices)}\n{item.prompt()}")
    print(f"--- {task}, shuffled\n{item.prompt(item.shuffled_shots())}\n--- {task}, zero-shot\n{item.prompt(())}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="a .pt file under runs/")
    parser.add_argument("--show", action="store_true", help="print every kind of prompt")
    parser.add_argument("--report", metavar="RUN", help="draw the report of a run folder again")
    flags = parser.parse_args()
    if flags.show:
        show(World())
    elif flags.report:
        print(report(flags.report))
    elif flags.checkpoint:
        ckpt = load_checkpoint(flags.checkpoint)
        benchmark = Benchmark(World(**ckpt["world"]), Tokenizer.from_json(ckpt["tokenizer"]), *ckpt["benchmark"])
        print(f"{flags.checkpoint}: {ckpt['job']['name']}, step {ckpt['step']}")
        for key, value in benchmark(model_from_checkpoint(ckpt)).items():
            for name, x in value.items() if isinstance(value, dict) else [(key, value)]:
                print(f"{name:32} {x:8.2f}")
    else:
        parser.error("give a checkpoint, --show or --report RUN")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
