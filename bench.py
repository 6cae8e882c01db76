"""The benchmark, and the reports that are drawn from the logs of studies.

Copain (Contextual Pattern Inference, Elhady et al. 2025) has seven rules over short lists. A prompt shows
three solved lists and no instruction; the greedily decoded answer must match. No word of any language occurs,
so that it measures in-context learning (ICL) alone. The label task names the kind of a noun by a letter,
after six examples: it needs ICL and the meaning of words. The cloze task asks which of four ends a sentence
has: it needs what prose tells of the world, and no ICL. Both are asked in the target language and, as a
control, in English.

In: a model and its tokenizer, or the log of a study. Out: metrics; or report.md, summary.json and figure.png.

    python bench.py --show                                          prints every kind of prompt
    python bench.py runs/laptop/seed2026/ema.pt                     benchmarks a checkpoint
    python bench.py runs/laptop/seed2026/ema.pt --sample "the dog"  prints documents that begin so
    python bench.py gpt2/ --copain CoPain/ --task belebele_eu.jsonl --shots 5    a model on benchmark files
    python bench.py --report runs/laptop/main                       draws a study's report from its log again
python bench.py --findings results                              claims and comparisons of all studies there
"""
import argparse
import functools
import itertools
import json
import math
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Callable

import numpy as np
import torch

from data import (ADJECTIVES, CATEGORIES, COPAIN_TASKS, HELD_OUT_FORMAT, LETTERS, NOUNS, VERBS, Tokenizer,
                  World, draw_list, is_reserved, label_lines, list_line, load_tokenizer, noun_phrase, prose,
                  read_json_lines, refuse, require, write_atomically)
from model import load_checkpoint, load_gpt2, model_from_checkpoint


# ------------------------------------------------------------------------------------------------------ items
@dataclass(frozen=True)
class Item:
    """One question with its texts. `zero_shot` is the prompt without its examples; in `shuffled` the examples
    have wrong answers, so that they teach the format and not the rule."""
    task: str
    prompt: str
    answer: str
    choices: tuple     # one of them is the answer
    zero_shot: str = ""
    shuffled: str = ""


def list_item(task, shots, elements, answer):
    """A Copain item. shots: a list of (elements, answer); elements: a list of strings."""
    def text(shots):
        return "\n".join(list_line(xs, x, HELD_OUT_FORMAT) for xs, x in [*shots, (elements, "")])

    rng = Random(text(shots))
    wrong = [(xs, rng.choice([x for x in xs if x != right])) for xs, right in shots]
    return Item(task, text(shots), answer, tuple(elements), text([]), text(wrong))


def copain_items(world, n_per_task=150, n_shots=3, seed=0):
    """Copain's seven tasks, every list from the reserve that training never draws from (data.is_reserved)."""
    items = {}
    for task in COPAIN_TASKS:
        rng, wanted = Random(f"copain/{task}/{seed}"), len(items) + n_per_task
        while len(items) < wanted:
            lines = []
            while len(lines) <= n_shots:
                elements, answer = draw_list(rng, task, world.max_integer)
                if is_reserved(elements) and (elements, answer) not in lines:
                    lines.append((elements, answer))
            item = list_item(task, lines[:-1], *lines[-1])
            items[task, item.prompt] = item  # one that is drawn twice counts once
    return list(items.values())


def nouns_to_ask(target):
    """{category: nouns} without those that the target language spells as English does."""
    return {c: [n for n in NOUNS[c] if not target.is_cognate(n)] for c in CATEGORIES}


def label_items(lang, target, n_items=300, n_shots=6, seed=0):
    """The label task in `lang`, over nouns that are no cognates in `target`. The same seed gives the same
    items in any language, translated."""
    rng, nouns, items = Random(f"labels/{seed}"), nouns_to_ask(target), []
    for _ in range(n_items):
        letter = dict(zip(rng.sample(CATEGORIES, 2), rng.sample(LETTERS, 2)))
        kinds = rng.sample(list(letter) * (n_shots // 2), n_shots) + [rng.choice(list(letter))]
        unused = {c: iter(rng.sample(nouns[c], n_shots // 2 + 1)) for c in letter}
        words = [lang.words[next(unused[c])] for c in kinds]
        answers = [letter[c] for c in kinds[:-1]]

        def text(words, answers):
            return label_lines(zip(words, [*answers, ""]), HELD_OUT_FORMAT).rstrip(" ")

        prompt = text(words, answers)
        shuffled = text(words, Random(prompt).sample(answers, n_shots))
        items.append(Item("label", prompt, letter[kinds[-1]], tuple(letter.values()),
                          text(words[-1:], []), shuffled))
    return items


def cloze_items(lang, target, n_items=200, seed=0):
    """The cloze task in `lang`, over nouns that are no cognates in `target`: a sentence up to its object, and
    four ends with objects of four categories. Subject and verb admit one of them. The ends are not equally
    long."""
    rng, nouns, items = Random(f"cloze/{seed}"), nouns_to_ask(target), []
    before, after = lang.order.split("O")
    for _ in range(n_items):
        s, o = rng.choice(CATEGORIES), rng.choice(CATEGORIES)
        part = {"S": noun_phrase(lang, rng.choice(nouns[s]), ending=lang.determiner),
                "V": " " + lang.words[VERBS[s, o]]}
        ends = {}
        for c in CATEGORIES:
            adjective = rng.choice(ADJECTIVES[c]) if rng.random() < 0.4 else None
            end = noun_phrase(lang, rng.choice(nouns[c]), adjective, lang.case_marker)
            ends[c] = (end + "".join(part[x] for x in after) + ".").removeprefix(" ")
        items.append(Item("cloze", "".join(part[x] for x in before), ends[o], tuple(ends.values())))
    return items


def copain_chance():
    """Percent right by copying a random element of the list: 3 elements, 4 in the odd-one-out tasks."""
    return 100 * np.mean([1 / 4 if task.endswith("_group") else 1 / 3 for task in COPAIN_TASKS])


# ------------------------------------------------------------------------------------------- items from files
def shots_for(file, rows, n_shots, source=()):
    """The examples of every row: the first rows of `source`, or else the rows after it, around the file's
    end."""
    n, needed = (len(source), n_shots) if source else (len(rows), n_shots + 1)
    require(n_shots >= 0, f"--shots is {n_shots}, expected 0 or more")
    require(n >= needed, f"{file} has {n} rows, too few for {n_shots} shots beside the question")
    if source:
        return [source[:n_shots]] * len(rows)
    return [(rows + rows)[i:i + n_shots] for i in range(1, len(rows) + 1)]


def read_copain(path, n_shots=3):
    """Items of Copain as its authors publish it: one file of JSON lines per task, TASK.jsonl or
    TASK/test.jsonl. Every row has one list, its elements, and a `target`, one of them. A row whose target
    occurs twice in its list is skipped, and counted on stderr. path: such a file, or a folder of them.
    ValueError names file and line."""
    path, items = Path(path), []
    for file in sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]:
        rows, skipped = [], 0
        for where, row in read_json_lines(file):
            lists = [value for value in row.values() if isinstance(value, list)]
            good = len(lists) == 1 and len(lists[0]) > 1 and all(isinstance(x, (str, int)) for x in lists[0])
            require(good, f"{where}: expected one list of two or more words or integers, found "
                          f"{lists or sorted(row)}")
            elements, target = [str(x).strip() for x in lists[0]], str(row.get("target")).strip()
            require("target" in row and target in elements,
                    f"{where}: the target is {row.get('target')!r}, expected one element of {elements}")
            if elements.count(target) == 1:
                rows.append((elements, target))
            else:
                skipped += 1
        if skipped:
            of = "1 row" if skipped == 1 else f"{skipped} rows"
            print(f"skipped {of} of {file}: the target occurs twice in the list", file=sys.stderr)
        task = file.parent.name if file.stem in ("test", "data") else file.stem
        items += [list_item(task, shots, *row) for row, shots in zip(rows, shots_for(file, rows, n_shots))]
    require(items, f"{path} holds no .jsonl file")
    return items


def read_questions(file):
    """[(context, choices, answer)] of a file of multiple choice."""
    rows = []
    for where, row in read_json_lines(file):
        context, choices, label = row.get("context"), row.get("choices"), row.get("label")
        require(isinstance(context, str) and context.strip(),
                f"{where}: `context` is {context!r}, expected a text")
        require(isinstance(choices, list) and all(isinstance(c, str) and c.strip() for c in choices)
                and len({c.strip() for c in choices}) == len(choices) > 1,
                f"{where}: `choices` is {choices!r}, expected two or more different texts")
        require(type(label) is int and 0 <= label < len(choices),  # True is no label
                f"{where}: `label` is {label!r}, expected a number from 0 to {len(choices) - 1}")
        choices = tuple(c.strip() for c in choices)
        rows.append((context.rstrip(), choices, choices[label]))
    require(rows, f"{file} has no row")
    return rows


def read_choices(path, n_shots=0, shots_from=None):
    """Items from JSON lines with `context`, `choices` (a list of texts) and `label` (the number of the right
    one, from 0). Shots come from the file `shots_from`, or else from the file itself. ValueError names file
    and line."""
    rows, items = read_questions(path), []
    source = read_questions(shots_from) if shots_from else []
    for (context, choices, answer), shots in zip(rows, shots_for(shots_from or path, rows, n_shots, source)):
        answers = [right for _, _, right in shots]

        def text(answers):
            return "\n\n".join([*(f"{shot[0]} {a}" for shot, a in zip(shots, answers)), context])

        shuffled = Random(text(answers)).sample(answers, len(answers))
        items.append(Item(str(path), text(answers), answer, choices, context, text(shuffled)))
    return items


# ---------------------------------------------------------------------------------------------------- scoring
@functools.lru_cache(maxsize=1 << 16)
def encode_item(tok, item, form="prompt", longest=None):
    """(prompt, its choices) as token ids: encoded jointly, then split, as a model sees them in training. A
    prompt that leaves no room for its choices within `longest` tokens loses its beginning. form: a field of
    Item."""
    text = getattr(item, form)
    ids = tok.encode(text)
    choices = [tok.encode(f"{text} {choice}")[len(ids):] for choice in item.choices]
    if longest:
        ids = ids[max(0, len(ids) + 1 + max(map(len, choices)) - longest):]
    return [tok.eot, *ids], choices


def by_length(model, rows):
    """Yields (numbers of rows, idx (B, T)). Rows of one length go together, so that nothing is padded."""
    groups, device = defaultdict(list), next(model.parameters()).device
    for i, row in enumerate(rows):
        groups[len(row)].append(i)
    for length, group in groups.items():
        size = max(1, min(4096, (1 << 25) // model.config.vocab_size) // length)  # logits of 128 MB at most
        for start in range(0, len(group), size):
            chunk = group[start:start + size]
            yield chunk, torch.tensor([rows[i] for i in chunk], device=device)


@torch.no_grad()
def greedy_answers(model, tok, prompts, max_new_tokens):
    """Decodes all prompts (lists of token ids) greedily up to the end of the line or of the document. Returns
    a list of strings; an answer that did not end within max_new_tokens is None."""
    ends = {i for i, token in enumerate(tok.ranks) if b"\n" in token} | {tok.eot}
    said, unfinished, answers = [[] for _ in prompts], list(range(len(prompts))), [None] * len(prompts)
    for _ in range(max_new_tokens):
        for chunk, idx in by_length(model, [prompts[i] + said[i] for i in unfinished]):
            for k, token in zip(chunk, model(idx)[0].argmax(-1).tolist()):            # logits (B, V)
                said[unfinished[k]].append(token)
        for i in unfinished:
            if said[i][-1] in ends:
                answers[i] = tok.decode(said[i][:-1]).strip()
        unfinished = [i for i in unfinished if answers[i] is None]
    return answers


@torch.no_grad()
def choice_logprobs(model, prompts, choices):
    """Summed log-probability (nats) of each choice after its prompt; one list of floats per prompt.

        row fed         p0  p1  p2  c0            prompt p, choice c; the last token of c is never fed
        logits predict  p1  p2  c0  c1            so the last len(c) positions predict the choice

    Choices that differ only in their last token share a row: with one-token choices, a prompt is run once.
    """
    wanted = defaultdict(list)       # {(row fed, tokens of the choice): [(prompt number, choice number)]}
    for n, prompt in enumerate(prompts):
        for k, choice in enumerate(choices[n]):
            wanted[tuple(prompt + choice[:-1]), len(choice)].append((n, k))
    scores = [[0.0] * len(cs) for cs in choices]
    for K in {K for _, K in wanted}:
        rows = [row for row, length in wanted if length == K]
        for chunk, idx in by_length(model, rows):
            if K == 1:
                logits = model(idx)[0][:, None]                                       # (B, V) -> (B, 1, V)
            else:
                logits = model(idx, targets=idx)[0][:, -K:]   # any targets give every position's: (B, K, V)
            logp = logits.float().log_softmax(-1).cpu().numpy()
            for b, i in enumerate(chunk):
                for n, k in wanted[rows[i], K]:
                    scores[n][k] = float(logp[b, range(K), choices[n][k]].sum())
    return scores


@torch.no_grad()
def perplexity(model, ids, n_blocks=128, block_size=None, full=True):
    """exp of the mean cross-entropy over the first whole blocks of ids, a one-dimensional array: a pair, over
    a third of n_blocks and over all. Without `full` the second is None. ValueError if no block is whole."""
    T, device, total, pair = block_size or model.config.block_size, next(model.parameters()).device, 0.0, []
    n = min(n_blocks, (len(ids) - 1) // T)
    require(n > 0, f"validation data has {len(ids)} tokens; one block of {T} needs {T + 1}")
    xy = torch.from_numpy(np.asarray(ids[:n * T + 1], dtype=np.int64)).to(device)
    x, y = xy[:-1].view(n, T), xy[1:].view(n, T)                                      # (n, T)
    third, size = min(math.ceil(n_blocks / 3), n), max(1, 2048 // T)
    for first, last in [(0, third), (third, n)] if full else [(0, third)]:
        for start in range(first, last, size):
            end = min(start + size, last)
            total += model(x[start:end], y[start:end])[1].item() * (end - start)
        pair.append(math.exp(min(total / last, 700)))
    return pair[0], pair[1] if full else None


@torch.no_grad()
def parameter_shift(model, base):
    """(mean over the parameter tensors of the L2 norm of theta - theta_base, as in the paper's release; the
    norm of the whole difference over the norm of theta_base). base: {name: tensor}."""
    shift = torch.stack([(p - base[name]).norm() for name, p in model.named_parameters()])
    size = torch.stack([base[name].norm() for name, _ in model.named_parameters()])
    return shift.mean().item(), (shift.norm() / size.norm()).item()


def percent(flags):
    return 100 * float(np.mean(flags))


def copain_answers(model, tok, items, form="prompt", longest=None):
    """{item: the model's answer}."""
    encoded = [encode_item(tok, item, form, longest) for item in items]
    most = max(len(choice) for _, choices in encoded for choice in choices)
    return dict(zip(items, greedy_answers(model, tok, [prompt for prompt, _ in encoded], most + 1)))


def copain_metrics(items, answers):
    """Exact match overall and per task; errors split into: no element of the list, a wrong element.
    Percent."""
    right = np.array([answers[item] == item.answer for item in items])
    listed = np.array([answers[item] in item.choices for item in items])
    task = np.array([item.task for item in items])
    return {"copain": percent(right), "copain_not_in_list": percent(~listed),
            "copain_wrong_element": percent(listed & ~right),
            "copain_tasks": {t: percent(right[task == t]) for t in dict.fromkeys(task.tolist())}}


def choice_marks(model, tok, items, form="prompt", longest=None):
    """{item: marks} by likelihood: whether the right choice is the likeliest by summed log-probability, by
    that per token, and by that per byte; `logprob` is the right choice's own."""
    encoded, marks = [encode_item(tok, item, form, longest) for item in items], {}
    for item, (_, choices), score in zip(items, encoded, choice_logprobs(model, *zip(*encoded))):
        right = item.choices.index(item.answer)
        ways = {"summed": score, "per_token": [s / len(c) for s, c in zip(score, choices)],
                "per_byte": [s / len(c.encode()) for s, c in zip(score, item.choices)]}
        marks[item] = {way: values.index(max(values)) == right for way, values in ways.items()}
        marks[item]["logprob"] = score[right]
    return marks


def choice_metrics(items, marks):
    """Accuracies in percent, one per way of comparing; `ppl` is the perplexity of the right choice: exp of
    minus its mean summed log-probability."""
    row = {way: percent([marks[item][way] for item in items]) for way in ("summed", "per_token", "per_byte")}
    return row | {"ppl": math.exp(min(-np.mean([marks[item]["logprob"] for item in items]), 700))}


def first_third(items):
    """The first third of the items of each task: the sample that curves are drawn from."""
    of_task = defaultdict(list)
    for item in items:
        of_task[item.task].append(item)
    return [item for some in of_task.values() for item in some[:math.ceil(len(some) / 3)]]


class Benchmark:
    """All items of a world. Calling it with a model gives the metrics of one row of the log.

    `copain`, `label_<language>` and `cloze_<language>` are accuracies, `cloze_norm_<language>` is one by
    log-probability per token: all in percent. `label_ppl_<language>` is the perplexity of the right label.
    With the prefix `curve_` they are of the sample, which is the same at every step. task: a file of multiple
    choice in the place of the label task; its prompts are shortened to block_size. """

    def __init__(self, world, tok, n_copain=150, n_label=300, n_cloze=200, seed=0, task="", shots=5,
                 block_size=None):
        self.tok, self.block_size, self.task, languages = tok, block_size, task, world.languages()
        self.copain, self.label, self.cloze = copain_items(world, n_copain, seed=seed), {}, {}
        for name in ("english", "target"):
            if n_label and not task:
                self.label[name] = label_items(languages[name], languages["target"], n_label, seed=seed)
            if n_cloze:
                self.cloze[name] = cloze_items(languages[name], languages["target"], n_cloze, seed=seed)
        if task:
            self.label["target"] = read_choices(task, shots)

    def longest(self):
        """Tokens of the longest prompt with its answer; those of a task file do not count."""
        lists = [self.copain, *self.cloze.values()] + ([] if self.task else list(self.label.values()))
        encoded = [encode_item(self.tok, item) for items in lists for item in items]
        return max(len(prompt) + len(choice) for prompt, choices in encoded for choice in choices)

    def __call__(self, model, full=True):
        """Metrics of a model. Without `full`, of the sample alone. With it, those of all items stand beside
        them, and the cloze tasks and controls join: Copain restricted to the list; zero-shot and shuffled
        answers."""
        how, sample = (model, self.tok), first_third(self.copain)
        answers = copain_answers(*how, self.copain if full else sample)
        row = {f"curve_{key}": x for key, x in copain_metrics(sample, answers).items()}
        if full:
            row |= copain_metrics(self.copain, answers)
            row["copain_restricted"] = choice_metrics(self.copain, choice_marks(*how, self.copain))["summed"]
        for name, items in self.label.items():
            some = first_third(items)
            marks = choice_marks(*how, items if full else some, "prompt", self.block_size)
            for prefix, of in [("curve_", some), ("", items)] if full else [("curve_", some)]:
                scores = choice_metrics(of, marks)
                row[f"{prefix}label_{name}"] = scores["summed"]
                row[f"{prefix}label_ppl_{name}"] = scores["ppl"]
        if not full:
            return row
        for name, items in self.cloze.items():
            scores = choice_metrics(items, choice_marks(*how, items))
            row[f"cloze_{name}"], row[f"cloze_norm_{name}"] = scores["summed"], scores["per_token"]
        for form, key in (("zero_shot", "zero-shot"), ("shuffled", "shuffled")):
            row[f"copain_{key}"] = copain_metrics(sample, copain_answers(*how, sample, form))["copain"]
            for name, items in self.label.items():
                marks = choice_marks(*how, items, form, self.block_size)
                row[f"label_{name}_{key}"] = choice_metrics(items, marks)["summed"]
        return row

    def check_disjoint(self, sources, lists=True, contexts=True):
        """Raises ValueError if a benchmark item occurs in a training source {name: ids}.

        Looked for are Copain's lists in any format (separators are dropped from the corpus first), the first
        HEAD tokens of every prompt, and the whole contexts of a task file. Contexts of fewer than HEAD tokens
        may occur anywhere and are not looked for. lists: False for real text, where any three numbers occur.
        contexts: False to train on sources that are known to hold contexts of the task file."""
        tok, (separator, arrow) = self.tok, HELD_OUT_FORMAT
        lines = {line for item in self.copain for line in item.prompt.split("\n")}
        numbers = {tuple(tok.encode(line.split(arrow)[0].replace(separator, ""))) for line in lines if lists}
        asked = self.copain + [item for items in self.label.values() for item in items if not self.task]
        needles = {tuple(tok.encode(item.prompt)[:HEAD]) for item in asked}
        if self.task and contexts:
            texts = {space + item.zero_shot for item in self.label["target"] for space in ("", " ")}
            needles |= {context for context in map(tuple, map(tok.encode, texts)) if len(context) >= HEAD}
        overlap, keep = max(64, *map(len, needles)), np.ones(max(tok.vocab_size, 1 << 16), dtype=bool)
        keep[[token for text in (",", ";", " |") for token in tok.encode(text)]] = False
        for name, source in sources.items():
            for start in range(0, len(source), PIECE):
                ids = np.asarray(source[start:start + PIECE + overlap])
                found = find(ids, needles) or find(ids[keep[ids]], numbers)
                if found:
                    raise ValueError(f"benchmark leak: {tok.decode(found)!r} of a benchmark prompt occurs in "
                                     f"the training source {name!r}: take it out of one of the two")


HEAD = 12        # tokens of a prompt that are looked for in the training sources
PIECE = 1 << 24  # tokens that are searched at a time: a source may be larger than memory


def find(ids, needles):
    """The first of `needles` (tuples of token ids) that occurs in the array ids; or None."""
    heads = defaultdict(list)                          # {the first HEAD tokens: the needles that begin so}
    for needle in needles:
        heads[needle[:HEAD]].append(needle)
    for n in {len(head) for head in heads}:
        factors = np.random.default_rng(0).integers(1 << 62, size=n, dtype=np.uint64)
        hashes = np.zeros(max(0, len(ids) - n + 1), dtype=np.uint64)
        for k in range(n):                             # a hash of n tokens from every place on, modulo 2^64
            hashes += ids[k:k + len(hashes)] * factors[k]
        wanted = np.zeros(1 << 20, dtype=bool)         # by the first 20 bits nearly all places fall out
        of_heads = np.array([head for head in heads if len(head) == n], dtype=np.uint64) @ factors
        wanted[of_heads >> np.uint64(44)] = True
        for i in np.flatnonzero(wanted[hashes >> np.uint64(44)]).tolist():
            for needle in heads.get(tuple(ids[i:i + n].tolist()), ()):
                if tuple(ids[i:i + len(needle)].tolist()) == needle:
                    return needle
    return None


def evaluate(model, benchmark, validation, before, n_blocks=128, full=True):
    """The metrics of one row of the log: perplexities on validation {name: ids}, the benchmark, the shift
    from `before` ({name: tensor}). Without `full`, perplexities and benchmark are of the sample alone
    (curve_...)."""
    row = {}
    for name, ids in validation.items():
        row[f"curve_ppl_{name}"], whole = perplexity(model, ids, n_blocks, benchmark.block_size, full)
        if full:
            row[f"ppl_{name}"] = whole
    row |= benchmark(model, full)
    row["shift_l2"], row["shift_relative"] = parameter_shift(model, before)
    return row


# ----------------------------------------------------------------------------------- intervals over the seeds
# 97.5% quantiles of Student's t for 1 to 30 degrees of freedom
T_975 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
         2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048,
         2.045, 2.042]


@dataclass(frozen=True)
class Estimate:
    """A mean over runs (one per seed) with its 95% t interval. With one run the interval is the value
    itself."""
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values, least=-math.inf, most=math.inf):
        """Of a value per run; the interval is cut to where values can be, from `least` to `most`."""
        n, mean = len(values), float(np.mean(values))
        half = float(T_975[min(n - 2, 29)] * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else 0.0
        return cls(mean, max(mean - half, least), min(mean + half, most))

    @classmethod
    def geometric(cls, values, least=0.0):
        """The geometric mean with its interval, computed on logarithms: for ratios and perplexities."""
        e = cls.of(np.log(values))
        return cls(math.exp(e.mean), max(math.exp(e.low), least), math.exp(e.high))

    def text(self, digits=1, factor=1):
        text = f"{self.mean * factor:.{digits}f}"
        if self.low < self.high:
            text += f" [{self.low * factor:.{digits}f}, {self.high * factor:.{digits}f}]"
        return text


class Log:
    """metrics.jsonl: a row per arm, seed and step. Only seeds that finished every arm enter a comparison.

        log("target", "copain")      an array with a value per seed: the difference of two is paired by run
    """

    def __init__(self, rows, label_chance=50.0, last=None):
        self.rows = {(row["arm"], row["seed"], row["step"]): row for row in rows}
        self.arms, self.label_chance = list(dict.fromkeys(row["arm"] for row in rows)), label_chance
        self.steps = sorted({row["step"] for row in rows})
        self.last = last or max(self.steps, default=0)
        self.unfinished = {}           # {seed: arms that it has not finished}
        for seed in sorted({row["seed"] for row in rows}):
            self.unfinished[seed] = [arm for arm in self.arms if (arm, seed, self.last) not in self.rows]
        self.seeds = [seed for seed, missing in self.unfinished.items() if not missing]

    def __call__(self, arm, key, step=None):
        step = self.last if step is None else step
        return np.array([self.rows[arm, seed, step][key] for seed in self.seeds])

    def curve(self, arm, key, step):
        """As log(arm, key, step), but of the sample that is the same at every step, where the log has it."""
        sampled = all(f"curve_{key}" in self.rows[arm, seed, step] for seed in self.seeds)
        return self(arm, f"curve_{key}" if sampled else key, step)

    def estimate(self, arm, key, step=None):
        """The Estimate of a metric: of a perplexity by logarithms, at least 1; of percentages from 0 to
        100."""
        values = self(arm, key, step)
        if "ppl" in key:
            return Estimate.geometric(values, least=1)
        return Estimate.of(values) if key.startswith("shift") else Estimate.of(values, 0, 100)

    def has(self, key):
        """Whether the last rows have this metric."""
        return any(key in row for (_, _, step), row in self.rows.items() if step == self.last)

    def caption(self):
        """What curves are drawn from, if it is a sample; else an empty text."""
        if self.has("curve_copain"):
            return "Curves: the same third of the items and validation blocks at every step; elsewhere: all."
        return ""


# --------------------------------------------------------------------------------------------------- verdicts
# Written down before the reported runs. "Above" and "below" hold for the whole 95% interval over seeds, paired
# by seed; where there is one seed only, for the mean. te is the arm target+english, t is the arm target.
PPL_MARGIN = 1.05    # C1, C5, C6: two perplexities within 5% count as equal
GAP = 10.0           # C2, C3: percentage points that count as a gap
LABEL_RATIO = 1.2    # C3: label perplexity without English over that with
COLLAPSE = 0.5       # C2: Copain falls below this share of the base's within the first tenth of the steps
SHIFT_RATIO = 2.0    # C4: the paper reports 7 and 15
RECOVERED = 0.8      # C5, C6: share of the gap between t and te that a repair has to close; half is partly
SPIKE = 2.0          # the report names steps whose loss is above so many times the mean around them
CONTROL = 5.0        # C6: percentage points within which the arm low-lr counts as equal to ema
RANKS = ["lora-1", "lora-4", "lora-16", "lora-64"]        # C7
SEEN = ["unseen", "seen-1", "seen-5", "seen-20"]   # C8: bases, the weakest in the language first


def grade(all_of, any_of):
    """Reproduced if every condition of the first list holds, partly if one of the second does."""
    return "reproduced" if all(all_of) else "partly" if any(any_of) else "not reproduced"


def difference(log, key, a="target+english", b="target"):
    return Estimate.of(log(a, key) - log(b, key))


def ratio(log, key, a="target", b="target+english"):
    return Estimate.geometric(np.maximum(log(a, key), 1e-9) / np.maximum(log(b, key), 1e-9))


def is_gap(difference):
    return difference.low > 0 and difference.mean >= GAP


def judge_c1(log):
    ppl = ratio(log, "ppl_target")
    verdict = "inconclusive"
    if 1 / PPL_MARGIN < ppl.low and ppl.high < PPL_MARGIN:
        verdict = "reproduced"
    elif ppl.low > PPL_MARGIN or ppl.high < 1 / PPL_MARGIN:
        verdict = "not reproduced"
    return verdict, f"perplexity without / with English {ppl.text(3)}"


def judge_c2(log):
    base, end = log.estimate("target", "copain", 0), difference(log, "copain")
    if base.mean <= copain_chance():
        return "inconclusive", f"the base has no ICL to lose: Copain {base.text()}%"
    early = [log.curve("target", "copain", step) for step in log.steps if 0 < step <= 0.1 * log.last]
    worst = Estimate.of(np.min(early, axis=0) / log.curve("target", "copain", 0), least=0)
    conditions = [worst.high < COLLAPSE, is_gap(end)]
    return grade(conditions, conditions), (
        f"lowest early Copain without English {worst.text(0, 100)}% of the base's; at the end with - without "
        f"{end.text()} points")


def judge_c3(log):
    end, ppl = difference(log, "label_target"), ratio(log, "label_ppl_target")
    conditions = [is_gap(end), ppl.low > 1 and ppl.mean >= LABEL_RATIO]
    return grade(conditions, conditions), (
        f"accuracy with - without {end.text()} points; label perplexity without / with {ppl.text(2)}")


def judge_c4(log):
    early = min((step for step in log.steps if step >= 0.1 * log.last), default=log.last)
    first, final = (Estimate.of(log("target", "shift_l2", step) / log("target+english", "shift_l2", step))
                    for step in (early, log.last))
    further = first.low > 1 and final.low > 1
    return grade([further, min(first.mean, final.mean) >= SHIFT_RATIO], [further]), (
        f"L2 shift without / with English {first.text(2)} at step {early}, {final.text(2)} at the end")


def judge_repair(log, arm):
    """C5 and C6: how much of what English gains does an arm gain without it?"""
    shares, gains = {}, {}  # share of the gap closed; whether the gain is above 0
    for key, name in (("copain", "Copain"), ("label_target", "downstream")):
        english, gain = difference(log, key), difference(log, key, arm)
        if is_gap(english):
            shares[name], gains[name] = gain.mean / english.mean, gain.low > 0
    if not shares:
        return "inconclusive", "English made no difference that could be recovered"
    ppl = ratio(log, "ppl_target", arm)
    closed = [shares[name] >= RECOVERED and gains[name] for name in shares]
    half = [shares[name] >= 0.5 and gains[name] for name in shares]
    texts = ", ".join(f"{name} {100 * share:.0f}%" for name, share in shares.items())
    return grade([len(closed) == 2, *closed, ppl.high < PPL_MARGIN], half), (
        f"share of the gap closed: {texts}; target perplexity over that with English {ppl.mean:.3f}")


def judge_c5(log):
    return judge_repair(log, "curriculum")


def judge_c6(log):
    verdict, text = judge_repair(log, "ema")
    if "low-lr" in log.arms:
        control = difference(log, "copain", "ema", "low-lr")
        finding = f"{'more' if control.mean > 0 else 'less'} than the small learning rate"
        if abs(control.mean) < CONTROL:
            finding = "the small learning rate does the same"
        text += f"; EMA - learning rate x 0.08 on Copain {control.text()} points: {finding}"
    return verdict, text


def judge_c7(log):
    conditions, texts = [], []
    for arm in RANKS:
        ppl, shift = (ratio(log, key, arm, "target") for key in ("ppl_target", "shift_l2"))
        conditions.append(ppl.low > 1 and ppl.mean >= PPL_MARGIN and shift.high < 1)
        texts.append(f"{arm} perplexity {ppl.text(2)}, L2 shift {shift.text(2)}")
    return grade(conditions, conditions), "over target: " + "; ".join(texts)


def judge_c8(log):
    gaps = {base: log(f"{base}+english", "label_target") - log(base, "label_target") for base in SEEN}
    more = Estimate.of(gaps[SEEN[0]] - gaps[SEEN[-1]])
    texts = ", ".join(f"{base} {Estimate.of(values).text()}" for base, values in gaps.items())
    return grade([more.low > 0, more.mean >= GAP], [more.low > 0]), (
        f"downstream with - without English: {texts}; weakest - strongest base {more.text()} points")


@dataclass(frozen=True)
class Claim:
    """A claim and what settles it; judge(log) gives a verdict and what was measured."""
    id: str
    study: str
    arms: list        # that it needs
    judge: Callable
    text: str
    criterion: str


T_TE = ["target", "target+english"]
CLAIMS = [
    Claim("C1", "main", T_TE, judge_c1, "English in the mixture does not change target perplexity",
          f"the ratio t / te is inside [1/{PPL_MARGIN}, {PPL_MARGIN}]"),
    Claim("C2", "main", T_TE, judge_c2, "without English, ICL collapses early",
          f"Copain of t falls below {COLLAPSE:.0%} of the base's in the first 10% of the steps, and te ends "
          f"at least {GAP:g} points above t, above 0; one of the two is partly"),
    Claim("C3", "main", T_TE, judge_c3, "that hurts downstream prompts in the target language",
          f"accuracy of te at least {GAP:g} points above t, above 0, and label perplexity t / te above 1 and "
          f"at least {LABEL_RATIO}; one is partly"),
    Claim("C4", "main", T_TE, judge_c4, "without English the parameters move further",
          f"L2 shift t / te above 1 and {SHIFT_RATIO:g} or more at 10% and at the end; above 1 is partly"),
    Claim("C5", "main", [*T_TE, "curriculum"], judge_c5,
          "curriculum: English in the first 10% of the steps is enough",
          f"closes {RECOVERED:.0%} of the gap te - t on Copain and downstream, gain above 0, perplexity "
          f"within {PPL_MARGIN - 1:.0%} of te; half of one gap is partly"),
    Claim("C6", "main", [*T_TE, "ema"], judge_c6, "EMA of the weights, without English, is enough",
          f"as C5, and said beside it: whether the control low-lr is within {CONTROL:g} points of Copain"),
    Claim("C7", "constraints", ["target", *RANKS], judge_c7,
          "LoRA limits the shift but also hinders learning the language",
          f"at every rank the L2 shift is below t's, and target perplexity above it, by {PPL_MARGIN - 1:.0%} "
          "or more; some rank is partly"),
    Claim("C8", "languages", [*SEEN, *(f"{base}+english" for base in SEEN)], judge_c8,
          "the weaker the base is in the target language, the more English matters",
          f"the downstream gap te - t from the base that has seen none of the language is larger, by {GAP:g} "
          "points or more, than from the one whose pretraining was 20% of it; larger by less is partly")]


def verdicts(log, study="main"):
    """One dict per claim of a study: id, claim, criterion, verdict, number; inconclusive where an arm is
    missing."""
    found = []
    for claim in CLAIMS:
        if claim.study != study:
            continue
        missing = [arm for arm in claim.arms if arm not in log.arms]
        if claim.id in ("C3", "C5", "C6", "C8") and not log.has("label_target") and not missing:
            missing = ["no task in the target language"]
        verdict, number = "inconclusive", f"not run to the end: {', '.join(missing) or 'some arms'}"
        if log.seeds and not missing:
            verdict, number = claim.judge(log)
        found.append({"id": claim.id, "claim": claim.text, "criterion": claim.criterion, "verdict": verdict,
                      "number": number})
    return found


# ---------------------------------------------------------------------------------------------- reading a log
def is_number(x, least=0):
    return type(x) in (int, float) and least <= x < math.inf


ALWAYS = ["train_loss", "ppl_target", "copain", "copain_not_in_list", "copain_wrong_element", "shift_l2",
          "shift_relative"]  # what every row has


def check_row(row, where, end):
    """ValueError if a row of a log lacks something, or a metric is no number; end: of the first or the last
    step."""
    require(isinstance(row, dict) and isinstance(row.get("arm"), str), f"{where} has no arm")
    for key in ("seed", "step", "data_seed", "bench_seed"):
        require(type(row.get(key)) is int and row[key] >= 0, f"{where} has no {key}")
    settings = row.get("settings")
    require(settings is None or isinstance(settings, str), f"{where}: settings is {settings!r}")
    for key in ALWAYS:
        require(key in row or not end and f"curve_{key}" in row, f"{where}: {key} is missing")
    for key, x in row.items():
        good = is_number(x, least=1 if "ppl" in key else 0)
        if key.startswith("train_loss") and row["step"] == 0:  # they are since the last evaluation
            good = x is None
        elif key.endswith("copain_tasks"):
            good = isinstance(x, dict) and set(x) == set(COPAIN_TASKS) and all(
                is_number(y) and y <= 100 for y in x.values())
        require(good or key in ("arm", "settings"), f"{where}: {key} is {x!r}")


def check_log(log, rows):
    """ValueError if rows are of several settings, one is there twice, one lacks what others have, or is
    missing."""
    kinds = {row.get("settings") for row in rows}
    names = [(row["arm"], row["seed"], row["step"]) for row in rows]
    require(len(kinds) == 1, "metrics.jsonl mixes runs that must not be averaged: rows of "
                             f"{len(kinds)} different settings ({', '.join(map(str, kinds))})")
    require(len(log.rows) == len(rows), f"metrics.jsonl: {max(names, key=names.count)} occurs twice")
    for ends in (True, False):  # the first and last rows have more metrics
        alike = [row for row in rows if (row["step"] in (0, log.last)) == ends]
        keys = {key for row in alike for key in row if not key.startswith("tokens_")}
        for row in alike:
            require(keys <= set(row), f"metrics.jsonl: arm {row['arm']!r} of seed {row['seed']} lacks "
                                      f"{min(keys - set(row), default='')!r} at step {row['step']}")
    for arm, seed, step in itertools.product(log.arms, log.seeds, sorted({0, *log.steps})):
        require((arm, seed, step) in log.rows,
                f"metrics.jsonl lacks arm {arm!r} of seed {seed} at step {step}")


def read_study(folder):
    """(Log, record) of a study's folder; ValueError with what to do if it is none, or damaged, or not
    finished."""
    try:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        info = json.loads((folder / "settings.json").read_text())
        order, last = list(info["arms"]), max(arm["steps"] for arm in info["arms"].values())
        last = last or info["settings"]["steps"]
        for n, row in enumerate(rows, 1):
            check_row(row, f"row {n}", end=row["step"] in (0, last))
        log = Log(sorted(rows, key=lambda row: (order.index(row["arm"]), row["seed"], row["step"])),
                  float(info.get("label_chance", 50)), last)
    except OSError as e:
        raise ValueError(f"{folder} is not the folder of a finished study ({e.strerror}: {e.filename}): run "
                         "train.py first, and give the folder that it names") from None
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{folder}: metrics.jsonl or settings.json is damaged ({type(e).__name__}: {e}): "
                         "rerun the study, which writes them again from its checkpoints") from None
    require(log.seeds, f"{folder}: no run has finished all of the study's arms: rerun the study to go on")
    try:
        check_log(log, rows)
    except ValueError as e:
        raise ValueError(f"{folder}/{e}: rerun the study, which writes it again") from None
    return log, info


# ----------------------------------------------------------------------------------------------------- report
COLUMNS = [  # heading, key, digits
    ("target ppl", "ppl_target", 2), ("English ppl", "ppl_english", 2), ("Copain %", "copain", 1),
    ("not in list %", "copain_not_in_list", 1), ("wrong element %", "copain_wrong_element", 1),
    ("label task %", "label_target", 1), ("label ppl", "label_ppl_target", 2),
    ("label, English %", "label_english", 1), ("cloze task %", "cloze_target", 1),
    ("cloze, per token %", "cloze_norm_target", 1), ("cloze, English %", "cloze_english", 1),
    ("L2 shift", "shift_l2", 2), ("relative shift", "shift_relative", 2)]
BRIEF = [COLUMNS[i] for i in (0, 2, 5, 6, 7, 8, 11)]  # for a terminal
CONTROLS = [
    ("Copain %", "copain", 1), ("restricted to the list %", "copain_restricted", 1),
    ("zero-shot %", "copain_zero-shot", 1), ("shuffled answers %", "copain_shuffled", 1),
    ("label task %", "label_target", 1), ("zero-shot %", "label_target_zero-shot", 1),
    ("shuffled labels %", "label_target_shuffled", 1)]


def markdown(heading, rows):
    """The lines of a table."""
    head, *body = ["| " + " | ".join(row) + " |" for row in [heading, *rows]]
    return [head, "|---" * len(heading) + "|", *body]


def aligned(rows):
    """A table for a terminal: its columns padded."""
    width = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for first, *rest in rows:
        lines.append("  ".join([first.ljust(width[0]), *(x.rjust(w) for x, w in zip(rest, width[1:]))]))
    return "\n".join(lines)


def ends_table(log, arms, columns):
    """(heading, rows) of a table: what the arms started from, then the end of every arm. What was not
    measured has no column. arms: {name: fields of train.Arm}."""
    columns = [column for column in columns if log.has(column[1])]
    rows, starts = [], {}
    for arm in log.arms:
        start = arms[arm]["start"] or f"base {arms[arm]['base']}".strip()
        starts.setdefault(start if start == "base" else f"{start}, before", arm)
    ends = {arm: arm for arm in log.arms}
    for lines, step in ((starts, 0), (ends, log.last)):
        for name, arm in lines.items():
            rows.append([name, *(log.estimate(arm, key, step).text(digits) for _, key, digits in columns)])
    return ["arm", *(heading for heading, _, _ in columns)], rows


def pairs_table(log, pairs):
    """Paired differences between arms at their end; and, against `target`, the share of what English gains
    there."""
    keys = [key for key in ("copain", "label_target", "cloze_target") if log.has(key)]
    name = {"copain": "Copain", "label_target": "label task", "cloze_target": "cloze task"}
    of_gap = {"copain": "of Copain's gap", "label_target": "of the label task's gap"}
    gaps, rows = [key for key in of_gap if key in keys], []
    for a, b in pairs:
        if a not in log.arms or b not in log.arms:
            continue
        row = [f"{a} against {b}", *(difference(log, key, a, b).text() for key in keys),
               *(ratio(log, key, a, b).text(3) for key in ("ppl_target", "shift_l2"))]
        for key in gaps:
            share = ""
            if b == "target" and "target+english" in log.arms and is_gap(difference(log, key)):
                share = f"{difference(log, key, a, b).mean / difference(log, key).mean:.0%}"
            row.append(share)
        rows.append(row)
    return markdown(["arms", *(f"{name[key]}, points" for key in keys), "target ppl, ratio",
                     "L2 shift, ratio", *(of_gap[key] for key in gaps)], rows)


def provenance(log, info):
    """Runs, seeds, machines and commits, in a line."""
    def span(key):
        found = sorted({row[key] for row in log.rows.values() if row["seed"] in log.seeds})
        return f"{found[0]} to {found[-1]}" if len(found) > 1 else str(found[0])

    runs = f"{len(log.seeds)} runs: base seeds" if len(log.seeds) > 1 else "1 run: base seed"
    s = info["settings"]
    machines = [f"{m['processor']}, {m['cores']} cores, torch {m['torch']}" for m in info["machines"]]
    return (f"{runs} {', '.join(map(str, log.seeds))}, data order {span('data_seed')}, benchmark "
            f"{span('bench_seed')}; {'; '.join(machines)}, {s['device']}, {s['dtype']}; commit "
            f"{', '.join(info['commits'])}")


def notes(log, info):
    """What a reader should know first: what was left out, what is not averaged, loss spikes."""
    lines, spikes = [f"Left out: {why}\n" for why in info["left_out"]], []
    for seed, missing in log.unfinished.items():
        if missing:
            lines.append(f"Not averaged: seed {seed}, which has not finished {', '.join(missing)}.\n")
    for (arm, seed, step), row in log.rows.items():
        if step > 0.1 * log.last and row.get("train_loss_max", 0) > SPIKE * row["train_loss"]:
            spikes.append(f"{arm} of seed {seed} before step {step}")
    if spikes:
        lines.append(f"Loss spikes, a step above {SPIKE:g} times the mean around it: {'; '.join(spikes)}.\n")
    return lines


def along_the_way(log):
    """The table of curves: Copain and the label task at every step."""
    keys, rows = [key for key in ("copain", "label_target") if log.has(key)], []
    for arm in log.arms:
        means = [[f"{log.curve(arm, key, step).mean():.0f}" for key in keys] for step in log.steps]
        rows.append([arm, *map(" / ".join, means)])
    return markdown(["arm", *map(str, log.steps)], rows)


def tokens_table(log):
    """The tokens that every arm has drawn from every source, the mean over runs."""
    keys, rows = {key for row in log.rows.values() for key in row if key.startswith("tokens_")}, []
    keys = sorted(keys, reverse=True)
    for arm in log.arms:
        ends = [log.rows[arm, seed, log.last] for seed in log.seeds]
        rows.append([arm, *(f"{np.mean([row.get(key, 0) for row in ends]):,.0f}" for key in keys)])
    return markdown(["arm", *(key.removeprefix("tokens_") for key in keys)], rows)


def arms_table(log, arms):
    """What differs in every arm from the plainest one."""
    rows = []
    for arm in log.arms:
        fields = {key: x for key, x in arms[arm].items() if x and (key, x) != ("lr_scale", 1.0)}
        rows.append([arm, ", ".join(f"{key} {x}" for key, x in fields.items())])
    return markdown(["arm", "definition"], rows)


def report(folder):
    """Writes report.md, summary.json and figure.png of a study's folder from its settings.json, metrics.jsonl
    and nothing else; returns the text that ends the study. ValueError if there is nothing finished to
    report."""
    folder = Path(folder)
    log, info = read_study(folder)
    arms, n, claims, warning = info["arms"], len(log.seeds), verdicts(log, info["study"]), []
    runs, spread = f"{n} runs", f"means over {n} runs [95% t interval over runs]"
    if n == 1:
        runs, spread = "1 run", "one run: no interval, so no measure of chance"
    heading = f"{info['question']}   {runs} of a small GPT"
    if info["settings"]["preset"] == "smoke":
        warning = ["**Smoke settings: every stage ran, the numbers mean nothing.**", ""]
        heading = "Smoke settings: these numbers mean nothing"
    chance = f"Chance: Copain {copain_chance():.1f}% by copying a random element of the list"
    if log.has("label_target"):
        chance += f", label task {log.label_chance:.0f}%"
    if log.has("cloze_target"):
        chance += ", cloze task 25%"
    ends, controls = ends_table(log, arms, COLUMNS), ends_table(log, arms, CONTROLS)
    text = [f"# Study `{info['study']}`", "", f"**{info['question']}**", "", *warning,
            f"{provenance(log, info)}. {spread[0].upper()}{spread[1:]}; at step {log.last} of the CPT.", "",
            *notes(log, info), "![figure](figure.png)", "", *markdown(*ends), "", f"{chance}.", ""]
    if claims:
        rows = [[v["id"], v["claim"], v["criterion"], f"**{v['verdict']}**", v["number"]] for v in claims]
        text += ["## Verdicts", "", "Criteria were fixed before the run (bench.py, CLAIMS); te is the arm "
                 "target+english, t the arm target. With several runs a comparison must hold for the whole "
                 "95% interval, paired by run.", "",
                 *markdown(["id", "claim", "criterion", "verdict", "measured"], rows), ""]
    text += ["## Arm against arm", "", "Differences and ratios at the end, paired by run; the gap is what "
             "target+english gains over target.", "", *pairs_table(log, info["pairs"]), "",
             "## Is it in-context learning?", "", "With no shots, or with shots whose answers are shuffled, "
             "what is left is what a model knows without the context; restricted to the list, only its "
             "elements compete.", "", *markdown(*controls), "", "## Copain and the label task along the way", ""]
    if log.caption():
        text += [log.caption(), ""]
    tasks = log(log.arms[0], "copain_tasks", 0)
    tasks = [f"{task} {Estimate.of([run[task] for run in tasks], 0, 100).text()}" for task in COPAIN_TASKS]
    text += [*along_the_way(log), "",
             f"Copain per task at step 0 ({ends[1][0][0]}), mean over {runs}: {', '.join(tasks)}.", "",
             "## Tokens per source", "", *tokens_table(log), "",
             "## Arms", "", "What differs from the plainest arm; learning rates are shares of Settings.lr.",
             "", *arms_table(log, arms), "",
             "## Settings", "", "```json", json.dumps(info["settings"], indent=1), "```", ""]
    write_atomically(folder / "report.md", lambda path: path.write_text("\n".join(text)))
    keys = [key for _, key, _ in COLUMNS if log.has(key)]
    numbers = {arm: {key: asdict(log.estimate(arm, key)) for key in keys} for arm in log.arms}
    summary = json.dumps({"study": info["study"], "seeds": log.seeds, "step": log.last,
                          "meaningful": not warning, "claims": claims, "arms": numbers}, indent=1)
    write_atomically(folder / "summary.json", lambda path: path.write_text(summary + "\n"))
    draw = draw_curves if info["study"] == "main" else draw_ends
    draw(log, folder / "figure.png", heading)
    head, rows = ends_table(log, arms, BRIEF)
    brief = [head, *rows]
    if len(log.arms) < 7:
        brief = list(zip(*brief))  # an arm a column
    found = [f"{v['id']} {v['verdict']:>14}: {v['claim']} ({v['number']})" for v in claims]
    return "\n".join([*warning, aligned(brief), "", spread, "", *found, "",
                      f"report: {folder / 'report.md'}"])


def findings(results):
    """What the studies in a folder found: the claims with their verdicts, then every study's comparisons,
    from logs. The README quotes the first part, up to the blank line; results/README.md is all of it."""
    logs, claims, lines = {}, [], []
    for path in sorted(Path(results).glob("*/metrics.jsonl")):
        log, info = read_study(path.parent)
        logs[info["study"]], folder = log, path.parent.name
        lines += ["", f"**{info['study']}: {info['question']}** {provenance(log, info)} "
                  f"([report]({folder}/report.md), [figure]({folder}/figure.png))", "",
                  *pairs_table(log, info["pairs"])]
    require(logs, f"{results} holds no study: run train.py, then give the folder that its studies are in")
    for study in dict.fromkeys(claim.study for claim in CLAIMS):
        log = logs.get(study, Log([]))
        for v in verdicts(log, study):
            runs = f"{study}, {len(log.seeds)} runs"
            claims.append([v["id"], v["claim"], f"**{v['verdict']}**", v["number"], runs])
    heading = ["", "claim", "verdict", "measured, mean [95% interval over runs]", "study"]
    return "\n".join([*markdown(heading, claims), *lines])


# ---------------------------------------------------------------------------------------------------- figures
PANELS = {  # metric: title
    "ppl_target": "Target perplexity", "copain": "Copain, % (in-context learning)",
    "label_target": "Label task in the target language, %",
    "label_ppl_target": "Label perplexity, target language", "shift_l2": "Shift from the base, mean L2",
    "ppl_english": "English perplexity"}
COLOURS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe and Ito's
DASHES = ["-", "-", "-", "-", (0, (4, 2)), (0, (1, 1)), (0, (5, 1, 1, 1))]


def new_figure(rows, columns, **kind):
    """(figure, its axes in a list). Matplotlib is imported here: only figures need it."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(rows, columns, **kind)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    return fig, list(axes.flat)


def save_figure(fig, path, heading):
    """Writes a figure as PNG, and forgets it."""
    import matplotlib.pyplot as plt
    fig.suptitle(heading, x=0.01, ha="left", fontsize=13)
    fig.tight_layout()
    write_atomically(path, lambda p: fig.savefig(p, dpi=100, format="png"))
    plt.close(fig)


def log_ticks(axis):
    """Three or more labelled ticks on a logarithmic axis: 1, 2, 5, 10 ..., or even ones where these are too
    few."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator
    low, high = axis.get_view_interval()
    powers = [10.0 ** k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)))]
    ticks = [m * power for power in powers for m in (1, 2, 5) if low <= m * power <= high]
    if len(ticks) < 3:
        axis.set_major_locator(MaxNLocator(5, min_n_ticks=3))
    elif len(ticks) > 14:
        axis.set_major_locator(LogLocator())
    else:
        axis.set_ticks(ticks)
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_locator(NullLocator())


def write_names(ax, points, gap):
    """Writes the names of points (x, y, name, colour) beside them, moved up where one would lie on
    another."""
    ax.autoscale_view()
    to_axes, placed = ax.transData + ax.transAxes.inverted(), []
    for x, y, name, colour in sorted(points, key=lambda point: point[1]):
        u, v = to_axes.transform((x, y))
        for other_u, other_v in placed:
            if abs(other_u - u) < 0.25:
                v = max(v, other_v + gap)
        placed.append((u, v))
        ax.text(u + 0.02, v, name, color=colour, fontsize=10, va="center", transform=ax.transAxes)


def draw_curves(log, path, heading):
    """The figure of `main`: each metric against the step. An arm is a thick line, a single run a thin one."""
    fig, axes = new_figure(2, 3, figsize=(16, 8))
    chance = {"copain": copain_chance(), "label_target": log.label_chance}
    for ax, (key, title) in zip(axes, PANELS.items()):
        ax.set_visible(log.has(key))
        if not log.has(key):
            continue
        names = []
        for i, arm in enumerate(log.arms):
            colour = COLOURS[i % len(COLOURS)]
            runs = np.array([log.curve(arm, key, step) for step in log.steps])        # (steps, seeds)
            means = np.exp(np.log(runs).mean(1)) if "ppl" in key else runs.mean(1)
            ax.plot(log.steps, means, color=colour, ls=DASHES[i % len(DASHES)], lw=2.2)
            if len(log.seeds) > 1:
                ax.plot(log.steps, runs, color=colour, lw=0.6, alpha=0.5)
            names.append((log.last, means[-1], arm, colour))
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(0, log.last * 6)
        ticks = [0, *(10 ** k for k in range(6) if 10 ** k <= log.last)]
        ax.set_xticks(ticks if len(ticks) > 2 else [0, 1, log.last])
        ax.xaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        if "ppl" in key:
            ax.set_yscale("log")
            log_ticks(ax.yaxis)
        if key in chance:
            ax.set_ylim(0, 103)
            ax.axhline(chance[key], color="0.5", ls=":", lw=1)
            ax.text(0.05, chance[key] + 1, "chance", color="0.4", fontsize=9)
        write_names(ax, names, 0.06)
        ax.set_title(title, loc="left", fontsize=11)
        ax.set_xlabel("step of the continued pretraining", fontsize=9)
    if len(log.seeds) > 1:
        heading += "; thin lines are single runs"
    save_figure(fig, path, f"{heading}\n{log.caption()}".strip())


def draw_ends(log, path, heading):
    """The figure of the other studies: where every arm ends, with its interval over runs; and Copain against
    target perplexity, an arm a point: what it remembers against what it has learned."""
    arms, colours = log.arms, [COLOURS[i % len(COLOURS)] for i in range(len(log.arms))]
    height = max(4.5, 0.42 * len(arms) + 1.5)
    fig, axes = new_figure(1, 5, figsize=(20, height), width_ratios=[1, 1, 1, 1, 1.6])
    chance = {"copain": copain_chance(), "label_target": log.label_chance}
    keys = [key for key in ("ppl_target", "copain", "label_target", "shift_l2") if log.has(key)]
    ends = {key: [log.estimate(arm, key) for arm in arms] for key in keys}
    for ax, key in zip(axes, keys):
        for i, e in enumerate(ends[key]):
            ax.plot([e.low, e.high], [i, i], color="0.6", lw=2, zorder=1)
            ax.plot(log(arms[i], key), np.full(len(log.seeds), i), "|", color="0.4", ms=7, zorder=1)
            ax.plot(e.mean, i, "o", color=colours[i], ms=7)
        if key in chance:
            ax.axvline(chance[key], color="0.5", ls=":", lw=1)
            ax.set_xlim(0, 103)
        ax.set_yticks(range(len(arms)), arms if ax is axes[0] else [""] * len(arms))
        ax.set_ylim(len(arms) - 0.5, -0.5)
        ax.grid(axis="y", color="0.92")
        ax.set_title(PANELS[key].replace(" in the target language", ""), loc="left", fontsize=11)
    plane, names = axes[4], []
    for arm, x, y, colour in zip(arms, ends["ppl_target"], ends["copain"], colours):
        plane.plot([x.mean, x.mean], [y.low, y.high], color="0.8", zorder=1)
        plane.plot(x.mean, y.mean, "o", color=colour, ms=7)
        names.append((x.mean, y.mean, arm, colour))
    plane.axhline(copain_chance(), color="0.5", ls=":", lw=1)
    plane.set_title("Copain, % against target perplexity: top left is best", loc="left", fontsize=11)
    plane.margins(x=0.3)
    means = [e.mean for e in ends["ppl_target"]]
    for ax in (axes[0], plane):
        if max(means) > 2 * min(means):
            ax.set_xscale("log")
            log_ticks(ax.xaxis)
    write_names(plane, names, 0.032)
    save_figure(fig, path, heading)


# ----------------------------------------------------------------------------------------------- command line
def show(world):
    """Prints one prompt of every task, with its answer, and how the controls change it."""
    languages = world.languages()
    items = {item.task: item for item in copain_items(world, 1)}
    for task, make in (("cloze", cloze_items), ("label", label_items)):
        for name in ("english", "target"):
            items[f"{task} task, {name}"] = make(languages[name], languages["target"], 1)[0]
    for name, item in items.items():
        print(f"--- {name}   answer: {item.answer}   choices: {', '.join(item.choices)}\n{item.prompt}")
    print(f"--- {name}, shuffled\n{item.shuffled}\n--- {name}, zero-shot\n{item.zero_shot}")


def sample(model, tok, prompt, n=3, length=60, seed=0):
    """Prints n documents that begin with the prompt, drawn at temperature 0.8."""
    device = next(model.parameters()).device
    start = torch.tensor([[tok.eot, *tok.encode(prompt)]], device=device).repeat(n, 1)         # (n, T)
    generator = torch.Generator(device).manual_seed(seed)
    for _, *ids in model.generate(start, length, temperature=0.8, generator=generator).tolist():
        print(tok.decode(ids[:ids.index(tok.eot)] if tok.eot in ids else ids), "\n")


def short_names(paths):
    """The shortest ends of the paths that tell them apart: names without their endings if these differ."""
    full = [Path(path).resolve() for path in paths]
    require(len(set(full)) == len(full), f"--task names a file twice: {', '.join(map(str, paths))}")
    names, n = [path.stem for path in full], 1
    while len(set(names)) < len(names):
        n += 1
        names = ["/".join(path.parts[-n:]) for path in full]
    return names


def score_files(model, tok, copain=None, tasks=(), n_shots=3, shots_from=None):
    """{metric: value} of a model on benchmark files: Copain's, a file or folder, and files of multiple
    choice."""
    row, longest = {}, model.config.block_size
    if copain:
        items = read_copain(copain, n_shots)
        row |= copain_metrics(items, copain_answers(model, tok, items, "prompt", longest - 8))
    for path, name in zip(tasks, short_names(tasks)):
        items = read_choices(path, n_shots, shots_from)
        scores = choice_metrics(items, choice_marks(model, tok, items, "prompt", longest))
        row |= {f"{name} {way}": x for way, x in scores.items()}
    return row


def load(path, tokenizer):
    """(model, its tokenizer, its checkpoint) of a .pt file, or of a GPT-2 folder, whose checkpoint is
    None."""
    if not Path(path).is_dir():
        ckpt = load_checkpoint(path)
        return model_from_checkpoint(ckpt), Tokenizer.from_json(ckpt["tokenizer"]), ckpt
    model, tok = load_gpt2(path), load_tokenizer(tokenizer or path)
    V = model.config.vocab_size
    require(tok.vocab_size <= V, f"the tokenizer has {tok.vocab_size} tokens, {path} only {V}: they do not "
                                 "belong together")
    return model, tok, None


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    flag = parser.add_argument
    flag("model", nargs="?", help="a .pt file under runs/, or a folder with the files of a GPT-2")
    flag("--copain", metavar="PATH", help="Copain's published rows: a file of one task, or a folder of all")
    flag("--task", metavar="FILE", action="append", default=[], help="multiple choice: JSON lines with "
         "context, choices, label; may be given several times")
    flag("--shots", type=int, default=3, help="examples before each question of a file; default 3")
    flag("--shots_from", metavar="FILE", help="where the examples of --task come from; default: the task")
    flag("--tokenizer", help="of a GPT-2 folder: gpt2, or a folder of its files; default: itself")
    flag("--sample", metavar="TEXT", nargs="?", const="", help="print documents that begin with TEXT; "
         "default: with a sentence in --language")
    flag("--language", default="target", help="of that sentence; default target")
    flag("--show", action="store_true", help="print every kind of prompt")
    flag("--report", metavar="STUDY", help="draw the report of a study's folder again")
    flag("--findings", metavar="RESULTS", help="print claims and comparisons of all studies in a folder")
    parser.error = refuse
    flags = parser.parse_args()
    if flags.show:
        return show(World())
    if flags.report or flags.findings:
        return print(report(flags.report) if flags.report else findings(flags.findings))
    require(flags.model, "give a model, --show, --report STUDY or --findings RESULTS")
    require(flags.shots >= 0, f"--shots is {flags.shots}, expected 0 or more")
    model, tok, ckpt = load(flags.model, flags.tokenizer)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    if flags.sample is not None:
        text, heading = flags.sample, f"documents that begin with {flags.sample!r}"
        if not text and ckpt and not ckpt["settings"]["source"]:  # real text begins as a document does
            languages, name = World(**ckpt["world"]).languages(), flags.language
            require(name in languages, f"language {name!r} is not in this checkpoint: {', '.join(languages)}")
            text = prose(Random(0), World(**ckpt["world"]), languages[name]).split(".")[0] + "."
            heading = f"documents in the language {name}"
        print(f"--- {flags.model}: {heading}")
        return sample(model, tok, text)
    if ckpt:
        print(f"{flags.model}: {ckpt['job']['name']}, step {ckpt['step']}")
    if flags.copain or flags.task:
        row = score_files(model, tok, flags.copain, flags.task, flags.shots, flags.shots_from)
    else:
        require(ckpt, f"{flags.model} is not of the toy world: give benchmark files, --copain or --task")
        row = Benchmark(World(**ckpt["world"]), tok, *ckpt["benchmark"])(model)
    row |= row.pop("copain_tasks", {})
    for name, value in row.items():
        if not name.startswith("curve_"):
            print(f"{name:32} {value:8.2f}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        refuse(e)
