"""The benchmark, and the reports that are drawn from the logs of studies.

Copain (Contextual Pattern Inference, Elhady et al. 2025): seven rules over short lists, no instruction, three shots,
exact match of the greedily decoded answer. It measures in-context learning (ICL) alone: no word of any language occurs.
Two downstream tasks, in the target language and, as a control, in English:
the label task: name the kind of a noun by a letter, given six shots. It needs ICL and the meaning of words;
the cloze task: which of four ends does a sentence have? It needs what target prose tells of the world, and no ICL.

    python bench.py --show                        every kind of prompt, to put on a slide
    python bench.py runs/laptop/seed2026/ema.pt   benchmarks a checkpoint
    python bench.py gpt2/ --copain CoPain/ --task belebele_eu.jsonl --shots 5     a model on benchmark files
    python bench.py --report runs/laptop/main     draws report.md, summary.json and figure.png from metrics.jsonl again
    python bench.py --findings results            claims and controls of all studies in a folder, as in the README
    python bench.py --speed                       tokens/s and milliseconds of every part of a step; --growth: by size
"""
import argparse
import contextlib
import importlib.util
import io
import json
import math
import mmap
import multiprocessing
import re
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch

from data import (ADJECTIVES, CATEGORIES, COPAIN_TASKS, HELD_OUT_FORMAT, LETTERS, NOUNS, VERBS, Mixture, Tokenizer,
                  World, draw_list, is_reserved, label_lines, list_line, load_tokenizer, noun_phrase, refuse, train_bpe,
                  write_atomically, write_corpus)
from model import GPT, GPTConfig, load_checkpoint, load_gpt2, model_from_checkpoint


# ------------------------------------------------------------------------------------------------------------ items
@dataclass(frozen=True)
class Item:
    """One question: shots and query are lists of words or numbers, with their answers; one of `choices` is right. In
    the cloze task there are no shots, and the one element is the beginning of a sentence."""
    task: str
    shots: tuple       # of (elements, answer)
    elements: tuple
    answer: str
    choices: tuple

    def prompt(self, shots=None):
        """The text before the answer, in the format that no training document has."""
        if self.task == "cloze":
            return self.elements[0]
        lines = [*(self.shots if shots is None else shots), (self.elements, "")]
        if self.task != "label" and len(self.elements) == 1:  # of a file
            return "\n\n".join(f"{context} {answer}".rstrip(" ") for (context,), answer in lines)
        if len(self.elements) > 1:
            return "\n".join(list_line(elements, answer, HELD_OUT_FORMAT) for elements, answer in lines)
        return label_lines([(word, answer) for (word,), answer in lines], HELD_OUT_FORMAT).rstrip(" ")

    def shuffled_shots(self):
        """The shots with wrong answers of the right form: what they still teach is the format, not the rule."""
        rng = Random(self.prompt())
        if len(self.elements) > 1:
            return tuple((elements, rng.choice([e for e in elements if e != right])) for elements, right in self.shots)
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


def cloze_items(lang, twin, n_items=200, seed=0):
    """The cloze task over the nouns of `lang` that are not cognates in `twin`: a sentence up to its object, and four
    ends whose objects are of four categories, of which subject and verb admit one. Not every end is equally long."""
    rng, items = Random(f"cloze/{seed}"), []
    nouns = {c: [n for n in NOUNS[c] if twin.name == "english" or not twin.is_cognate(n)] for c in CATEGORIES}
    before, after = lang.order.split("O")
    for _ in range(n_items):
        s, o = rng.choice(CATEGORIES), rng.choice(CATEGORIES)
        part = {"S": noun_phrase(lang, rng.choice(nouns[s]), ending=lang.determiner),
                "V": " " + lang.words[VERBS[s, o]]}
        ends = {}
        for c in CATEGORIES:
            adjective = rng.choice(ADJECTIVES[c]) if rng.random() < 0.4 else None
            ends[c] = (noun_phrase(lang, rng.choice(nouns[c]), adjective, lang.case_marker)
                       + "".join(part[x] for x in after) + ".").removeprefix(" ")
        items.append(Item("cloze", (), ("".join(part[x] for x in before),), ends[o], tuple(ends.values())))
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
        first = torch.tensor([wanted[i][0][2] for i in chunk])
        K = max(len(c) for i in chunk for *_, c in wanted[i])
        positions = (first[:, None] + torch.arange(K)).clamp(max=idx.size(1) - 1).to(device)      # (B, K)
        logp = model(idx, last=positions)[0].float().log_softmax(-1)                         # (B, K, V)
        where = [(b, j, t, n, k) for b, i in enumerate(chunk) for n, k, _, c in wanted[i] for j, t in enumerate(c)]
        b, j, t = torch.tensor([w[:3] for w in where], device=device).T
        for (*_, n, k), value in zip(where, logp[b, j, t].tolist()):
            scores[n][k] += value
    return scores


@torch.no_grad()
def perplexity(model, ids, n_blocks=128, block_size=None):
    """exp of the mean cross-entropy over the first n_blocks whole blocks of ids, a one-dimensional array."""
    T = block_size or model.config.block_size
    n, device = min(n_blocks, (len(ids) - 1) // T), next(model.parameters()).device
    if n < 1:
        raise ValueError(f"validation data has {len(ids)} tokens; one block of {T} needs {T + 1}")
    xy = torch.from_numpy(np.asarray(ids[:n * T + 1], dtype=np.int64)).to(device)
    parts = zip(*(side.view(n, T).split(max(1, 2048 // T)) for side in (xy[:-1], xy[1:])))
    return math.exp(min(sum(model(x, y)[1].item() * len(x) for x, y in parts) / n, 700))


@torch.no_grad()
def parameter_shift(model, base):
    """(mean over the parameter tensors of the L2 norm of theta - theta_base, as in the paper's release; and the norm
    of the whole difference over the norm of theta_base). base: {name: tensor}."""
    names, params = zip(*model.named_parameters())
    before = [base[n] for n in names]
    shift = torch.stack(torch._foreach_norm(torch._foreach_sub(params, before)))
    size = torch.stack(torch._foreach_norm(before))
    return shift.mean().item(), (shift.norm() / size.norm()).item()


def encode_items(tok, items, texts, longest=None):
    """Prompts and choices of items as token ids: encoded jointly, then split, as a model sees them in training. A
    prompt that leaves no room for its choices within `longest` tokens loses its beginning."""
    prompts, choices = [], []
    for item, text in zip(items, texts):
        ids = tok.encode(text)
        choices.append([tok.encode(f"{text} {c}")[len(ids):] for c in item.choices])
        room = longest - max(map(len, choices[-1])) if longest else len(ids)
        prompts.append([tok.eot, *ids[max(0, len(ids) - room):]])
    return prompts, choices


def copain_scores(model, tok, items, prompts, choices):
    """Exact match overall and per task, and the errors split into: no element of the list, a wrong element; percent."""
    longest = max(len(c) for cs in choices for c in cs)
    answers = greedy_answers(model, tok, prompts, longest + 1)
    right = np.array([a == item.answer for a, item in zip(answers, items)])
    listed = np.array([a in item.elements for a, item in zip(answers, items)])
    task = np.array([item.task for item in items])
    return {"copain": 100 * float(right.mean()), "copain_not_in_list": 100 * float((~listed).mean()),
            "copain_wrong_element": 100 * float((listed & ~right).mean()),
            "copain_tasks": {t: 100 * float(right[task == t].mean()) for t in dict.fromkeys(task.tolist())}}


def choice_scores(model, items, prompts, choices):
    """Likelihood-scored multiple choice: accuracy in percent by summed log-probability, and by it per token and per
    byte of the choice; and the perplexity of the right choice, exp of minus its mean summed log-probability."""
    scores = choice_logprobs(model, prompts, choices)
    right = [item.choices.index(item.answer) for item in items]
    lengths = {"summed": [[1] * len(cs) for cs in choices], "per_token": [[len(c) for c in cs] for cs in choices],
               "per_byte": [[len(c.encode()) for c in item.choices] for item in items]}
    row = {name: 100 * float(np.mean([np.argmax(np.divide(s, ls)) == r for s, ls, r in zip(scores, of, right)]))
           for name, of in lengths.items()}
    return row | {"ppl": math.exp(min(-np.mean([s[r] for s, r in zip(scores, right)]), 700))}


# ------------------------------------------------------------------------------------------------ benchmarks from files
def _read_rows(path):
    """Yields (line number, dict) of a file of JSON lines; ValueError names file and line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: byte 0x{e.object[e.start]:02x} at offset {e.start} is not UTF-8") from None
    for n, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as e:
                raise ValueError(f"{path}, line {n}: not JSON ({e})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {n}: {line[:40]!r} is not an object with named fields")
            yield n, row


def _with_shots(path, rows, n_shots, source=None):
    """Items from (task, elements, answer, choices), each with n_shots others before it: those that follow it in the
    same file, around its end; or the first of `source`."""
    pool = rows if source is None else source
    if len(pool) < n_shots + (source is None):
        raise ValueError(f"{path} has {len(pool)} rows, too few for {n_shots} shots"
                         + " beside the question" * (source is None))
    items = []
    for i, (task, elements, answer, choices) in enumerate(rows):
        others = [pool[(i + 1 + k) % len(pool)] for k in range(n_shots)] if source is None else pool[:n_shots]
        items.append(Item(task, tuple((e, a) for _, e, a, _ in others), elements, answer, choices))
    return items


def read_copain(path, n_shots=3):
    """Copain as its authors publish it: one file of JSON lines per task, TASK.jsonl or TASK/test.jsonl; every row has
    one list, its elements, and a `target`, one of them. path: such a file, or a folder of them. Returns Items."""
    path, items = Path(path), []
    files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no .jsonl file")
    for file in files:
        task, rows = file.parent.name if file.stem in ("test", "data") else file.stem, []
        for n, row in _read_rows(file):
            lists = [v for v in row.values() if isinstance(v, list)]
            if len(lists) != 1 or len(lists[0]) < 2 or not all(isinstance(e, (str, int)) for e in lists[0]):
                raise ValueError(f"{file}, line {n}: expected one list of two or more words or integers, found "
                                 f"{lists if lists else sorted(row)}")
            elements, target = tuple(str(e).strip() for e in lists[0]), str(row.get("target")).strip()
            if "target" not in row or elements.count(target) != 1:
                raise ValueError(f"{file}, line {n}: the target is {row.get('target')!r}, expected one element of "
                                 f"{list(elements)}")
            rows.append((task, elements, target, elements))
        items += _with_shots(file, rows, n_shots)
    return items


def read_choices(path, n_shots=0, shots_from=None):
    """Multiple choice from JSON lines with `context`, `choices` (a list of texts) and `label` (the number of the right
    one, from 0). Shots come from the file `shots_from`, or else from the task itself. Returns Items."""
    def rows_of(file):
        rows = []
        for n, row in _read_rows(file):
            context, choices, label = (row.get(k) for k in ("context", "choices", "label"))
            if not isinstance(context, str) or not context.strip():
                raise ValueError(f"{file}, line {n}: `context` is {context!r}, expected a text")
            if not (isinstance(choices, list) and len(choices) > 1
                    and all(isinstance(c, str) and c.strip() for c in choices)
                    and len(set(choices)) == len(choices)):
                raise ValueError(f"{file}, line {n}: `choices` is {choices!r}, expected two or more different texts")
            if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(choices):
                raise ValueError(f"{file}, line {n}: `label` is {label!r}, expected a number from 0 to "
                                 f"{len(choices) - 1}")
            choices = tuple(c.strip() for c in choices)
            rows.append((Path(file).stem, (context.rstrip(),), choices[label], choices))
        if not rows:
            raise ValueError(f"{file} has no row")
        return rows

    return _with_shots(shots_from or path, rows_of(path), n_shots, rows_of(shots_from) if shots_from else None)


def score_files(model, tok, copain=None, tasks=(), n_shots=3, shots_from=None):
    """{metric: value} of a model on benchmark files: Copain's, a file or folder, and files of multiple choice."""
    row, longest = {}, model.config.block_size - 1
    if copain:
        items = read_copain(copain, n_shots)
        row |= copain_scores(model, tok, items, *encode_items(tok, items, [i.prompt() for i in items], longest - 8))
    for path in tasks:
        items = read_choices(path, n_shots, shots_from)
        scores = choice_scores(model, items, *encode_items(tok, items, [i.prompt() for i in items], longest))
        row |= {f"{Path(path).stem} {name}": x for name, x in scores.items()}
    return row


class Benchmark:
    """All items of a world, encoded once; calling it with a model gives the metrics of one row of the log.

    `label_<language>` and `cloze_<language>` are accuracies by summed log-probability, `cloze_norm_<language>` by
    log-probability per token, `label_ppl_<language>` is the perplexity of the right label. All but that are in percent.
    """

    def __init__(self, world, tok, n_copain=150, n_label=300, n_cloze=200, seed=0, task="", shots=5, block_size=None):
        self.tok, self.block_size = tok, block_size
        languages = {name: world.languages()[name] for name in ("english", "target")}
        target = languages["target"]
        self.copain = copain_items(world, n_copain, seed=seed)
        self.copain_third = [x for i, x in enumerate(self.copain) if i % n_copain < math.ceil(n_copain / 3)]
        self.label = {name: label_items(lang, target if name == "english" else lang, n_label, seed=seed)
                      for name, lang in languages.items() if n_label}
        self.cloze = {name: cloze_items(lang, target if name == "english" else lang, n_cloze, seed=seed)
                      for name, lang in languages.items() if n_cloze}
        if task:  # a file in the place of the label task
            self.label = {"target": read_choices(task, shots)}
        self.cache = {}
        everything = self.copain, *self.label.values(), *self.cloze.values()
        self.longest = max(len(p) + max(map(len, c)) for items in everything
                           for p, c in zip(*self.encode(items, "few-shot"))) + 1

    def encode(self, items, condition):
        """encode_items, once for every condition: few-shot, zero-shot, or with the answers of the shots shuffled."""
        key = tuple(items), condition
        if key not in self.cache:
            shots = {"few-shot": lambda i: None, "zero-shot": lambda i: (), "shuffled": Item.shuffled_shots}[condition]
            texts = [item.prompt(shots(item)) for item in items]
            room = (self.block_size - 1
                    if self.block_size and items[0].task not in ("label", "cloze", *COPAIN_TASKS) else None)
            self.cache[key] = encode_items(self.tok, items, texts, room)
        return self.cache[key]

    def copain_scores(self, model, items, condition="few-shot"):
        return copain_scores(model, self.tok, items, *self.encode(items, condition))

    def choice_scores(self, model, items, condition="few-shot"):
        return choice_scores(model, items, *self.encode(items, condition))

    def __call__(self, model, full=True):
        """Metrics of a model. Without `full`, a third of the items of each task stands for all; with it, the cloze
        tasks and the controls join: restricted to the list; on a third of Copain, zero-shot and shuffled answers."""
        row = self.copain_scores(model, self.copain if full else self.copain_third)
        for name, items in self.label.items():
            scores = self.choice_scores(model, items if full else items[:math.ceil(len(items) / 3)])
            row[f"label_{name}"], row[f"label_ppl_{name}"] = scores["summed"], scores["ppl"]
        if full:
            row["copain_restricted"] = self.choice_scores(model, self.copain)["summed"]
            for name, items in self.cloze.items():
                scores = self.choice_scores(model, items)
                row[f"cloze_{name}"], row[f"cloze_norm_{name}"] = scores["summed"], scores["per_token"]
            for condition in ("zero-shot", "shuffled"):
                row[f"copain_{condition}"] = self.copain_scores(model, self.copain_third, condition)["copain"]
                for name, items in self.label.items():
                    row[f"label_{name}_{condition}"] = self.choice_scores(model, items, condition)["summed"]
        return row

    def check_disjoint(self, sources, lists=True):
        """Raises ValueError if the list of a benchmark item, or the start of a prompt, occurs in a source {name: ids};
        in real text, where any three numbers occur, `lists` is false.

        Formats do not hide a leak: separators are dropped from the corpus first, so that a list is found in any.
        """
        drop = [t for s in (",", ";", " |") for t in self.tok.encode(s)]
        of_lists = {tuple(self.tok.encode("".join(f" {e}" for e in elements)))
                 for item in self.copain for elements, _ in (*item.shots, (item.elements, ""))}
        prompts = {tuple(p[1:13]) for items in (self.copain, *self.label.values())
                   for p in self.encode(items, "few-shot")[0]}
        keep = np.ones(max(self.tok.vocab_size, 1 << 16), dtype=bool)
        keep[drop] = False
        for name, source in sources.items():
            found = None
            for start in range(0, len(source), 1 << 24):  # a piece at a time: a source may be larger than memory
                ids = np.asarray(source[start:start + (1 << 24) + 64])
                found = found or lists and _find(ids[keep[ids]], of_lists) or _find(ids, prompts)
            if found:
                raise ValueError(f"benchmark leak: {self.tok.decode(found)!r} of a benchmark prompt occurs in the "
                                 f"training source {name!r}: take it out of there, or out of the benchmark")


def _find(ids, needles):
    """The first of the token tuples that occurs in ids, or None."""
    for n in {len(needle) for needle in needles}:
        group = np.array([needle for needle in needles if len(needle) == n])             # (needles, n)
        at = np.arange(len(ids) - n + 1)
        for k in range(n):  # keep the places where token k is token k of some needle
            wanted = np.zeros(int(max(ids.max(initial=0), group.max())) + 1, dtype=bool)
            wanted[group[:, k]] = True
            at = at[wanted[ids[at + k]]]
        factors = np.random.default_rng(0).integers(1 << 62, size=n, dtype=np.uint64)    # then hash what is left
        hashes = ids[at[:, None] + np.arange(n)].astype(np.uint64) @ factors
        for i in at[np.isin(hashes, group.astype(np.uint64) @ factors)]:
            if tuple(ids[i:i + n].tolist()) in needles:
                return tuple(ids[i:i + n].tolist())
    return None


def evaluate(model, benchmark, validation, before, n_blocks=128, full=True):
    """The metrics of one row of the log: perplexities, benchmark, shift from `before` ({name: tensor}). Without `full`
    a third of the validation blocks and of the items stands for all."""
    n_blocks = n_blocks if full else math.ceil(n_blocks / 3)
    row = {f"ppl_{name}": perplexity(model, ids, n_blocks, benchmark.block_size) for name, ids in validation.items()}
    row |= benchmark(model, full)
    row["shift_l2"], row["shift_relative"] = parameter_shift(model, before)
    return row


# ------------------------------------------------------------------------------------------ intervals over the seeds
# 97.5% quantiles of Student's t for 1 to 30 degrees of freedom
T_975 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
         2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042]


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

    def exp(self):
        """Of an estimate of a logarithm, that of its argument: the geometric mean and its interval."""
        return Estimate(math.exp(self.mean), math.exp(self.low), math.exp(self.high))

    def text(self, digits=1, factor=1):
        interval = f" [{self.low * factor:.{digits}f}, {self.high * factor:.{digits}f}]" if self.low < self.high else ""
        return f"{self.mean * factor:.{digits}f}{interval}"


class Log:
    """metrics.jsonl: one row per arm, seed and step; only seeds that finished every arm enter a comparison."""

    def __init__(self, rows, label_chance=50.0):
        self.rows, self.label_chance = rows, label_chance
        self.arms = list(dict.fromkeys(row["arm"] for row in rows))
        self.last = max((row["step"] for row in rows), default=0)
        ended = {arm: {r["seed"] for r in rows if r["arm"] == arm and r["step"] == self.last} for arm in self.arms}
        self.seeds = sorted(set.intersection(*ended.values())) if ended else []
        self.unfinished = {seed: [arm for arm in self.arms if seed not in ended[arm]]
                           for seed in sorted({r["seed"] for r in rows} - set(self.seeds))}

    def steps(self, arm):
        return sorted({r["step"] for r in self.rows if r["arm"] == arm})

    def at(self, arm, key, step=None):
        """{seed: value} of an arm at a step, by default the last one."""
        step = self.last if step is None else step
        return {r["seed"]: r[key] for r in self.rows
                if r["arm"] == arm and r["step"] == step and r["seed"] in self.seeds and key in r}

    def has(self, key):
        """Whether the last rows have this metric."""
        return any(key in r for r in self.rows if r["step"] == self.last)

    def mean(self, arm, key, step=None):
        """The mean over runs, 0 where no row has the key."""
        return np.mean(list(self.at(arm, key, step).values()) or [0.0])

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
SPIKE = 2.0          # the report names steps whose loss is above so many times the mean since the last evaluation
CONTROL = 5.0        # C6: percentage points within which the arm low-lr counts as equal to ema
RANKS = ["lora-1", "lora-4", "lora-16", "lora-64"]        # C7
SEEN = ["unseen", "seen-1", "seen-5", "seen-20"]          # C8, from the weakest base in the target language on


def judge_c1(log):
    ratio = log.paired(lambda t, te: math.log(t / te), ("target", "ppl_target"), ("target+english", "ppl_target"))
    margin = math.log(PPL_MARGIN)
    verdict = ("reproduced" if -margin < ratio.low and ratio.high < margin else
               "not reproduced" if ratio.low > margin or ratio.high < -margin else "inconclusive")
    return verdict, f"perplexity without / with English {ratio.exp().text(3)}"


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
    return verdict, (f"accuracy with - without {gap.text()} points; label perplexity without / with "
                     f"{ppl.exp().text(2)}")


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
        text += (f"; EMA - learning rate x 0.08 on Copain {control.text()} points: "
                 + ("the small learning rate does the same" if abs(control.mean) < CONTROL else
                    f"{'more' if control.mean > 0 else 'less'} than the small learning rate"))
    return verdict, text


def judge_c7(log):
    ppl, shift = ([log.paired(lambda a, t: math.log(a / t), (arm, key), ("target", key)) for arm in RANKS]
                  for key in ("ppl_target", "shift_l2"))
    both = [p.low > 0 and p.mean >= math.log(PPL_MARGIN) and s.high < 0 for p, s in zip(ppl, shift)]
    verdict = "reproduced" if all(both) else "partly" if any(both) else "not reproduced"
    return verdict, "over target: " + "; ".join(f"{arm} perplexity {p.exp().text(2)}, L2 shift {s.exp().text(2)}"
                                                for arm, p, s in zip(RANKS, ppl, shift))


def judge_c8(log):
    key = "label_target"
    gaps = [log.paired(lambda te, t: te - t, (f"{base}+english", key), (base, key)) for base in SEEN]
    more = log.paired(lambda te, t, te2, t2: (te - t) - (te2 - t2), *((arm, key) for base in (SEEN[0], SEEN[-1])
                                                                     for arm in (f"{base}+english", base)))
    verdict = "not reproduced" if more.low <= 0 else "reproduced" if more.mean >= GAP else "partly"
    return verdict, ("downstream with - without English: " + ", ".join(f"{b} {g.text()}" for b, g in zip(SEEN, gaps))
                     + f"; weakest - strongest base {more.text()} points")


CLAIMS = [  # id, study, claim, criterion, arms that it needs, judge
    ("C1", "main", "English in the mixture does not change target perplexity",
     f"the ratio t / te is inside [1/{PPL_MARGIN}, {PPL_MARGIN}]", ("target", "target+english"), judge_c1),
    ("C2", "main", "without English, ICL collapses early",
     f"Copain of t falls below {COLLAPSE:.0%} of the base's in the first 10% of the steps, and te ends at least "
     f"{GAP:g} points above t, above 0; one of the two is partly", ("target", "target+english"), judge_c2),
    ("C3", "main", "that hurts downstream prompts in the target language",
     f"accuracy of te at least {GAP:g} points above t, above 0, and label perplexity t / te above 1 and at least "
     f"{LABEL_RATIO}; one is partly",
     ("target", "target+english"), judge_c3),
    ("C4", "main", "without English the parameters move further",
     f"L2 shift t / te above 1 and {SHIFT_RATIO:g} or more at 10% and at the end; above 1 is partly",
     ("target", "target+english"), judge_c4),
    ("C5", "main", "curriculum: English in the first 10% of the steps is enough",
     f"closes {RECOVERED:.0%} of the gap te - t on Copain and downstream, gain above 0, perplexity within "
     f"{PPL_MARGIN - 1:.0%} of te; half of one gap is partly", ("target", "target+english", "curriculum"),
     lambda log: judge_repair(log, "curriculum")),
    ("C6", "main", "EMA of the weights, without English, is enough", "as C5, and said beside it: whether the control "
     f"low-lr is within {CONTROL:g} points of Copain", ("target", "target+english", "ema"), judge_c6),
    ("C7", "constraints", "LoRA limits the shift but also hinders learning the language",
     f"at every rank the L2 shift is below t's, and target perplexity above it, by {PPL_MARGIN - 1:.0%} or more; some "
     "rank is partly", ("target", *RANKS), judge_c7),
    ("C8", "languages", "the weaker the base is in the target language, the more English matters",
     f"the downstream gap te - t from the base that has seen none of the language is larger, by {GAP:g} points or "
     "more, than from the one whose pretraining was 20% of it; larger by less is partly",
     tuple(base + arm for base in SEEN for arm in ("", "+english")), judge_c8),
]


def verdicts(log, study="main"):
    """One dict per claim of a study: id, claim, criterion, verdict, number; inconclusive where an arm is missing."""
    out = []
    for id_, of, claim, criterion, arms, judge in CLAIMS:
        if of != study:
            continue
        missing = [arm for arm in arms if arm not in log.arms] or [
            "no task in the target language"] * (not log.has("label_target") and id_ in ("C3", "C5", "C6", "C8"))
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
    ("label task %", "label_target", 1), ("label ppl", "label_ppl_target", 2), ("label, English %", "label_english", 1),
    ("cloze task %", "cloze_target", 1), ("cloze, per token %", "cloze_norm_target", 1),
    ("cloze, English %", "cloze_english", 1), ("L2 shift", "shift_l2", 2), ("relative shift", "shift_relative", 2)]
BASELINES = [
    ("Copain %", "copain", 1), ("restricted to the list %", "copain_restricted", 1),
    ("zero-shot %", "copain_zero-shot", 1), ("shuffled answers %", "copain_shuffled", 1),
    ("label task %", "label_target", 1), ("zero-shot %", "label_target_zero-shot", 1),
    ("shuffled labels %", "label_target_shuffled", 1)]


def _markdown(heading, rows):
    line = lambda cells: "| " + " | ".join(cells) + " |"
    return [line(heading), "|---" * len(heading) + "|", *map(line, rows)]


def _table(log, arms, columns):
    """The end of every arm, and first the bases or arms that they started from; arms: {name: fields of train.Arm}. What
    was not measured, as the cloze task in real text, has no column."""
    starts, columns = {}, [column for column in columns if log.has(column[1])]
    for arm in log.arms:
        starts.setdefault((arms[arm]["base"], arms[arm]["start"]), arm)
    lines = [(f"{start or f'base {base}'.strip()}, before" if start or base else "base", arm, 0)
             for (base, start), arm in starts.items()]
    return _markdown(["arm", *(heading for heading, *_ in columns)],
                     [[name, *(Estimate.of(log.at(arm, key, step).values()).text(digits) for _, key, digits in columns)]
                      for name, arm, step in lines + [(arm, arm, None) for arm in log.arms]])


def _pairs(log, pairs):
    """Paired differences between arms at their end; and, against `target`, the share of what English gains there."""
    rows = []
    for a, b in pairs:
        if a not in log.arms or b not in log.arms:
            continue
        points = {key: log.paired(lambda x, y: x - y, (a, key), (b, key))
                  for key in ("copain", "label_target", "cloze_target") if log.has(key)}
        ratios = [log.paired(lambda x, y: math.log(max(x, 1e-9) / max(y, 1e-9)), (a, key), (b, key)).exp()
                  for key in ("ppl_target", "shift_l2")]
        shares = []
        for key in (key for key in ("copain", "label_target") if log.has(key)):
            gap = (log.paired(lambda x, y: x - y, ("target+english", key), ("target", key))
                   if b == "target" and "target+english" in log.arms else None)
            shares.append(f"{points[key].mean / gap.mean:.0%}" if gap and gap.low > 0 and gap.mean >= GAP else "")
        rows.append([f"{a} against {b}", *(p.text() for p in points.values()), *(r.text(3) for r in ratios), *shares])
    label, cloze = ([text] * log.has(key)
                    for text, key in (("label task", "label_target"), ("cloze task", "cloze_target")))
    return _markdown(["arms", "Copain, points", *(f"{x}, points" for x in label + cloze), "target ppl, ratio",
                      "L2 shift, ratio", "of Copain's gap", *(f"of the {x}'s gap" for x in label)], rows)


def _is_measure(x):
    return isinstance(x, (int, float)) and not isinstance(x, bool) and 0 <= x < math.inf


def _check_row(row, where, ends):
    """Raises ValueError if a row of a log has no arm, seed and step, or a metric is missing or not a finite number."""
    if not (isinstance(row, dict) and isinstance(row.get("arm"), str)
            and all(isinstance(row.get(k), int) and row[k] >= 0 for k in ("seed", "step", "data_seed", "bench_seed"))):
        raise ValueError(f"{where} has no arm, seed or step")
    if not isinstance(row.get("settings"), (str, type(None))):
        raise ValueError(f"{where}: settings is {row['settings']!r}")
    for key in ("train_loss", "train_loss_max"):  # since the last evaluation: at step 0 there is none
        x = row.get(key, row.get("train_loss"))  # early logs have no maximum
        if not (_is_measure(x) if row["step"] else x is None):
            raise ValueError(f"{where}: {key} is {x!r}")
    always = ["ppl_target", "copain", "copain_not_in_list", "copain_wrong_element", "shift_l2", "shift_relative"]
    given = [key for key in row if re.match("tokens_|ppl_|label_|cloze_|copain_(?!tasks)", key)]
    for key in [*given, *always]:
        x = row.get(key)
        if not _is_measure(x) or "ppl" in key and x < 1:
            raise ValueError(f"{where}: {key} is {x!r}")
    tasks = row.get("copain_tasks")
    if ends and not (isinstance(tasks, dict) and set(tasks) == set(COPAIN_TASKS)
                     and all(_is_measure(x) and x <= 100 for x in tasks.values())):
        raise ValueError(f"{where}: copain_tasks is {tasks!r}")


def _read(folder):
    """(Log, record) of a study's folder; ValueError with what to do if it is none."""
    try:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        info = json.loads((folder / "settings.json").read_text())
        order = list(info["arms"])
        last = max((row["step"] for row in rows), default=0)
        for n, row in enumerate(rows, 1):
            _check_row(row, f"row {n}", ends=row["step"] in (0, last))
        log = Log(sorted(rows, key=lambda r: (order.index(r["arm"]), r["seed"], r["step"])),
                  float(info.get("label_chance", 50)))
    except OSError as e:
        raise ValueError(f"{folder} is not the folder of a finished study ({e.strerror}: {e.filename}): run train.py "
                         "first, and give the folder that it names") from None
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{folder}: metrics.jsonl or settings.json is damaged ({type(e).__name__}: {e}): rerun the "
                         "study, which writes them again from its checkpoints") from None
    kinds, keys = {r.get("settings") for r in rows}, [(r["arm"], r["seed"], r["step"]) for r in rows]
    if len(kinds) > 1 or len(set(keys)) < len(keys):
        twice = "" if len(set(keys)) == len(keys) else f"{max(keys, key=keys.count)} occurs twice"
        raise ValueError(f"{folder}/metrics.jsonl mixes runs that must not be averaged: " + (twice or "rows of "
                         f"{len(kinds)} different settings ({', '.join(map(str, kinds))})") + ": rerun the study, "
                         "which gathers its own rows")
    for ends in (False, True):  # what one of them has, all must have
        of = [r for r in rows if (r["step"] in (0, log.last)) == ends]
        keys = {key for r in of for key in r if not key.startswith("tokens_")}
        for r in of:
            if keys - set(r):
                raise ValueError(f"{folder}/metrics.jsonl: arm {r['arm']!r} of seed {r['seed']} lacks "
                                 f"{min(keys - set(r))!r} at step {r['step']}: rerun the study, which writes it again "
                                 "from its checkpoints")
    steps = {(arm, seed): {r["step"] for r in rows if (r["arm"], r["seed"]) == (arm, seed)}
             for arm in log.arms for seed in log.seeds}
    expected = {0} | set().union(*steps.values())
    for (arm, seed), found in steps.items():
        if found != expected:
            raise ValueError(f"{folder}/metrics.jsonl lacks arm {arm!r} of seed {seed} at step "
                             f"{min(expected - found)}: rerun the study, which writes it again from its checkpoints")
    if not log.seeds:
        raise ValueError(f"{folder}: no run has finished all of the study's arms: rerun the study to continue it")
    return log, info


def _provenance(log, info):
    s, n = info["settings"], len(log.seeds)
    which = f"seeds {', '.join(map(str, log.seeds))}" if n > 1 else f"seed {log.seeds[0]}"
    other = [sorted({r[key] for r in log.rows if r["seed"] in log.seeds}) for key in ("data_seed", "bench_seed")]
    of = [f"{xs[0]} to {xs[-1]}" if len(xs) > 1 else str(xs[0]) for xs in other]
    machines = "; ".join(f"{m['processor']}, {m['cores']} cores, torch {m['torch']}" for m in info["machines"])
    return (f"{n} run{'s' * (n > 1)}: base {which}, data order {of[0]}, benchmark {of[1]}; {machines}, {s['device']}, "
            f"{s['dtype']}; commit {', '.join(info['commits'])}")


def report(folder):
    """Writes report.md, summary.json and figure.png of a study's folder from its settings.json, metrics.jsonl and
    nothing else; returns the text that ends the study. Raises ValueError if there is nothing finished to report."""
    folder = Path(folder)
    log, info = _read(folder)
    s, n, arms = info["settings"], len(log.seeds), info["arms"]
    smoke = ["**Smoke settings: every stage ran, the numbers mean nothing.**", ""] * (s["preset"] == "smoke")
    spread = (f"means over {n} runs [95% t interval over runs]" if n > 1 else
              "one run: no interval, so no measure of chance")
    main, claims, steps = _table(log, arms, COLUMNS), verdicts(log, info["study"]), log.steps(log.arms[0])
    tasks = {t: Estimate.of(v[t] for v in log.at(log.arms[0], "copain_tasks", 0).values()).text()
             for t in COPAIN_TASKS}
    spikes = [f"{r['arm']} of seed {r['seed']} before step {r['step']}" for r in log.rows if r["step"]
              and r.get("train_loss_max", 0) > SPIKE * r["train_loss"] and r["step"] > 0.1 * log.last]
    notes = [*(f"Not averaged: seed {seed}, which has not finished {', '.join(missing)}.\n"
               for seed, missing in log.unfinished.items()),
             *[f"Loss spikes, a step above {SPIKE:g} times the mean around it: {'; '.join(spikes)}.\n"] * bool(spikes)]
    used = sorted({key for r in log.rows for key in r if key.startswith("tokens_")}, reverse=True)
    text = "\n".join([
        f"# Study `{info['study']}`", "", f"**{info['question']}**", "", *smoke,
        f"{_provenance(log, info)}. {spread[0].upper()}{spread[1:]}; at step {log.last} of the CPT.", "",
        *(f"Left out: {why}\n" for why in info["left_out"]), *notes, "![figure](figure.png)", "", *main, "",
        f"Chance: Copain {copain_chance():.1f}% by copying a random element of the list"
        + f", label task {log.label_chance:.0f}%" * log.has("label_target")
        + ", cloze task 25%" * log.has("cloze_target") + ".", "",
        *(["## Verdicts", "", "Criteria were fixed before the run (bench.py, CLAIMS); te is the arm target+english, t "
           "the arm target. With several runs a comparison must hold for the whole 95% interval, paired by run.", "",
           *_markdown(["id", "claim", "criterion", "verdict", "measured"], [
               [v["id"], v["claim"], v["criterion"], f"**{v['verdict']}**", v["number"]] for v in claims]), ""]
          if claims else []),
        "## Arm against arm", "", "Differences and ratios at the end, paired by run; the gap is what target+english "
        "gains over target.", "", *_pairs(log, info["pairs"]), "",
        "## Is it in-context learning?", "", "With no shots, or with shots whose answers are shuffled, what is left is "
        "what a model knows without the context; restricted to the list, only its elements compete.", "",
        *_table(log, arms, BASELINES), "",
        "## Copain and the label task along the way", "",
        *_markdown(["arm", *map(str, steps)], [
            [arm, *(" / ".join(f"{log.mean(arm, key, x):.0f}" for key in ("copain", "label_target") if log.has(key))
                    for x in steps)] for arm in log.arms]), "",
        "First base, Copain per task: " + ", ".join(f"{t} {x}" for t, x in tasks.items()) + ".", "",
        "## Tokens per source", "",
        *_markdown(["arm", *(key.removeprefix("tokens_") for key in used)], [
            [arm, *(f"{log.mean(arm, key):,.0f}" for key in used)] for arm in log.arms]), "",
        "## Arms", "", "What differs from the plainest arm; learning rates are shares of Settings.lr.", "",
        *_markdown(["arm", "definition"], [
            [arm, ", ".join(f"{k} {v}" for k, v in arms[arm].items() if v and (k, v) != ("lr_scale", 1.0))]
            for arm in log.arms]), "",
        "## Settings", "", "```json", json.dumps(s, indent=1), "```", ""])
    write_atomically(folder / "report.md", lambda p: p.write_text(text))
    summary = {"study": info["study"], "seeds": log.seeds, "step": log.last, "meaningful": s["preset"] != "smoke",
               "claims": claims, "arms": {
                   arm: {key: asdict(Estimate.of(log.at(arm, key).values())) for _, key, _ in COLUMNS if log.has(key)}
                   for arm in log.arms}}
    write_atomically(folder / "summary.json", lambda p: p.write_text(json.dumps(summary, indent=1) + "\n"))
    draw = draw_curves if info["study"] == "main" else draw_ends
    draw(log, folder / "figure.png", "Smoke settings: these numbers mean nothing" if smoke else
         f"{info['question']}   {n} run{'s' * (n > 1)} of a small GPT")
    verdict_lines = [f"{v['id']} {v['verdict']:>14}: {v['claim']} ({v['number']})" for v in claims]
    terminal = _aligned(_table(log, arms, [c for c in COLUMNS if c[1] in BRIEF]), len(log.arms) < 7)
    return "\n".join([*smoke, terminal, "", spread, "", *verdict_lines, "", f"report: {folder / 'report.md'}"])


BRIEF = ("ppl_target", "copain", "label_target", "label_ppl_target", "cloze_target", "label_english", "shift_l2")


def findings(results):
    """What the studies in a folder found: the claims with their verdicts, then every study's comparisons, from logs.
    The README quotes the first part, up to the blank line; results/README.md is all of it."""
    logs = {}
    for path in sorted(Path(results).glob("*/metrics.jsonl")):
        log, info = _read(path.parent)
        logs[info["study"]] = log, info, path.parent
    if not logs:
        raise ValueError(f"{results} holds no study: run train.py, then give the folder that its studies are in")
    rows = []
    for study in dict.fromkeys(of for _, of, *_ in CLAIMS):
        log = logs[study][0] if study in logs else Log([])
        rows += [[v["id"], v["claim"], f"**{v['verdict']}**", v["number"], f"{study}, {len(log.seeds)} runs"]
                 for v in verdicts(log, study)]
    lines = _markdown(["", "claim", "verdict", "measured, mean [95% interval over runs]", "study"], rows)
    for study, (log, info, folder) in logs.items():
        lines += ["", f"**{study}: {info['question']}** {_provenance(log, info)} ([report]({folder.name}/report.md), "
                  f"[figure]({folder.name}/figure.png))", "", *_pairs(log, info["pairs"])]
    return "\n".join(lines)


def _aligned(table, turned):
    """A markdown table with its columns padded, for a terminal; turned, the arms are the columns."""
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in table if not line.startswith("|---")]
    cells = list(zip(*cells)) if turned else cells
    width = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, width)))
                     for row in cells)


PANELS = [  # title, key, log scale
    ("Target perplexity", "ppl_target", True), ("Copain, % (in-context learning)", "copain", False),
    ("Label task in the target language, %", "label_target", False),
    ("Label perplexity, target language", "label_ppl_target", True),
    ("Shift from the base, mean L2", "shift_l2", False), ("English perplexity", "ppl_english", True)]
COLOURS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe and Ito: for everybody
DASHES = ["-", "-", "-", "-", (0, (4, 2)), (0, (1, 1)), (0, (5, 1, 1, 1))]


def draw_curves(log, path, heading):
    """The figure: each metric against the step, every arm a line with its name at its end, every seed a thin one."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(2, 3, figsize=(16, 8))
    for ax, (title, key, log_scale) in zip(axes.flat, PANELS):
        ax.set_visible(log.has(key))
        if not log.has(key):
            continue
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
        level = {"copain": copain_chance(), "label_target": log.label_chance}.get(key)
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
    fig.suptitle(heading + "; thin lines are single runs" * (len(log.seeds) > 1), x=0.01, ha="left", fontsize=13)
    fig.tight_layout()
    write_atomically(path, lambda p: fig.savefig(p, dpi=110, format="png"))
    plt.close(fig)


def draw_ends(log, path, heading):
    """The figure of the other studies: where every arm ends, with its interval over runs; and Copain against target
    perplexity, an arm a point: what it remembers against what it has learned."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    n = len(log.arms)
    fig, axes = plt.subplots(1, 5, figsize=(20, max(4.5, 0.42 * n + 1.5)), width_ratios=[1, 1, 1, 1, 1.6])
    ends = {key: [Estimate.of(log.at(arm, key).values()) for arm in log.arms]
            for key in ("ppl_target", "copain", "label_target", "shift_l2") if log.has(key)}
    for ax, (key, estimates) in zip(axes, ends.items()):
        for i, e in enumerate(estimates):
            ax.plot([e.low, e.high], [i, i], color="0.6", lw=2, zorder=1)
            ax.plot(list(log.at(log.arms[i], key).values()), [i] * len(log.seeds), "|", color="0.4", ms=7, zorder=1)
            ax.plot(e.mean, i, "o", color=COLOURS[i % len(COLOURS)], ms=7)
        level = {"copain": copain_chance(), "label_target": log.label_chance}.get(key)
        if level is not None:
            ax.axvline(level, color="0.5", ls=":", lw=1)
            ax.set_xlim(0, 103)
        ax.set_yticks(range(n), log.arms if ax is axes[0] else [""] * n)
        ax.set_ylim(n - 0.5, -0.5)
        ax.grid(axis="y", color="0.92")
        title = {key: title for title, key, _ in PANELS}[key]
        ax.set_title(title.replace(" in the target language", ""), loc="left", fontsize=11)
    x, y = ends["ppl_target"], ends["copain"]
    for i, arm in enumerate(log.arms):
        axes[4].errorbar(x[i].mean, y[i].mean, yerr=y[i].mean - y[i].low, fmt="o", color=COLOURS[i % len(COLOURS)],
                         ecolor="0.8", ms=7)
    for ax in (axes[0], axes[4]):
        if max(e.mean for e in x) > 2 * min(e.mean for e in x):
            ax.set_xscale("log")
        ax.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        ax.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes[4].axhline(copain_chance(), color="0.5", ls=":", lw=1)
    axes[4].set_title("Copain, % against target perplexity: top left is best", loc="left", fontsize=11)
    axes[4].margins(x=0.3)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    fig.canvas.draw()  # names beside the points, pushed up where they would overlap
    to_axes, placed = axes[4].transData + axes[4].transAxes.inverted(), []
    for i in sorted(range(n), key=lambda i: y[i].mean):
        u, v = to_axes.transform((x[i].mean, y[i].mean))
        v = max([v, *(w + 0.032 for a, w in placed if abs(a - u) < 0.25 and w + 0.032 > v)])
        placed.append((u, v))
        axes[4].text(u + 0.02, v, log.arms[i], fontsize=9, va="center", transform=axes[4].transAxes,
                     color=COLOURS[i % len(COLOURS)])
    fig.suptitle(heading, x=0.01, ha="left", fontsize=13)
    fig.tight_layout()
    write_atomically(path, lambda p: fig.savefig(p, dpi=100, format="png"))
    plt.close(fig)


# ------------------------------------------------------------------------------------------------------------- speed
SIZES = {  # what --speed times: the shape, and rows of a batch on a CPU and on a GPU
    "toy": (dict(vocab_size=800, block_size=128, n_layer=4, n_head=4, n_embd=128), 32, 32),
    "124M": (dict(vocab_size=50304), 1, 16)}  # GPT-2's vocabulary, filled up to a multiple of 64
PHASES = ["data", "forward", "backward", "clip", "optimizer", "EMA"]


def step_phases(shape, rows, dtype, device, compile="", steps=20):
    """Trains a GPT of that shape on random tokens, as the arm `ema` does. Returns {phase: median milliseconds of a
    step}, those of one evaluation among them; the mean of whole steps, which do not wait for the GPU after every phase,
    as "step"; and the peak memory in MB as "MB"."""
    import train  # here, because train imports this file
    train.keep_freed_memory()
    train.set_precision(device)
    s = train.Settings(device=device, dtype=dtype, **{k: v for k, v in shape.items() if k != "vocab_size"})
    model = GPT(GPTConfig(**shape)).to(device)
    T, job = model.config.block_size, train.arm_job(s, "ema")
    ids = np.random.default_rng(0).integers(0, 800, 1_000_000).astype(np.uint16)
    mixture = Mixture({"target": ids, "english": ids}, T, seed=0)
    autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
    forward, optimizers = train.wrapped(model, compile, rows, T, autocast), train.make_optimizers(model, job, s)
    ema, times, last = train.InLoopEMA(model, job.arm.ema_alpha), {name: [] for name in PHASES}, [0.0]

    def mark(phase):
        if device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        times.setdefault(phase, []).append(1000 * (now - last[0]))
        last[0] = now

    def one_step(step, mark):
        x, y, _ = mixture.batch(step, rows, {"target": 0.8, "english": 0.2})
        ((x, y, _, _),) = train.micro_batches(x, y, 1, device)
        mark("data")
        with autocast:
            loss = forward(x, y)[1]
        mark("forward")
        loss.backward()
        mark("backward")
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        mark("clip")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        mark("optimizer")
        ema.update(step + 1)
        mark("EMA")

    for step in range(3 + steps):
        mark("start")
        one_step(step, mark)
    mark("start")
    for step in range(steps):
        one_step(step, lambda phase: None)
    mark("all steps")
    benchmark, before = small_benchmark(15, 15), {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(2):
        mark("start")
        with autocast:
            evaluate(model, benchmark, {"target": ids, "english": ids}, before, n_blocks=2, full=False)
        mark("evaluation")
    medians = {k: float(np.median(times[k][3:])) for k in PHASES} | {"evaluation": times["evaluation"][1]}
    return medians | {"step": times["all steps"][0] / steps,
                      "MB": peak_memory(device)}


def peak_memory(device):
    """MB that this process has had at most: of the GPU's memory, or of main memory."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    import resource  # not on Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def small_benchmark(n, n_cloze):
    """A Benchmark of n items of each of Copain's tasks and of the label tasks, with a tokenizer made for it."""
    world = World()
    texts = [text for name in ("english", "target") for text in write_corpus(world, name, 500, 0)]
    tok = Tokenizer(train_bpe(texts, 800))
    return Benchmark(world, tok, n, n, n_cloze)


def matmul_ceiling(dtype, device):
    """The most FLOP/s that a product of two square matrices reached here: the best of five tries at three sizes."""
    import train
    train.set_precision(device)
    best = 0.0
    for n in (4096, 8192, 16384) if device == "cuda" else (512, 1024, 2048):
        a = torch.randn(n, n, dtype=getattr(torch, dtype), device=device)  # a GPU multiplies ones at a higher clock
        for _ in range(6):
            start = time.perf_counter()
            (a @ a)[0, 0].item()
            best = max(best, 2 * n ** 3 / (time.perf_counter() - start))
            if time.perf_counter() - start > 5:  # a CPU that emulates bfloat16
                break
    return best


def bare_steps(folder, keep_memory, shape, rows, dtype, device, compile="", steps=10, warm_up=40):
    """Milliseconds of training steps (forward, backward, clip, optimizer) of this GPT or, where a folder is given, of
    nanoGPT's from the model.py in it. keep_memory: after keep_freed_memory() of train.py, which nanoGPT has not.
    warm_up: steps before those that are timed; in its first steps a process asks the system for memory."""
    import train
    if keep_memory:
        train.keep_freed_memory()
    train.set_precision(device)
    config, s = GPTConfig(**shape), train.Settings(device=device, dtype=dtype)
    autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
    if folder:
        spec = importlib.util.spec_from_file_location("nanogpt", Path(folder) / "model.py")
        theirs = importlib.util.module_from_spec(spec)
        sys.modules["nanogpt"] = theirs  # its dataclass wants to find its module
        with contextlib.redirect_stdout(io.StringIO()):
            spec.loader.exec_module(theirs)
            model = theirs.GPT(theirs.GPTConfig(**asdict(config), dropout=0.0)).to(device)
            optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), device)
    else:
        model = GPT(config).to(device)
        (optimizer,) = train.make_optimizers(model, train.arm_job(s, "target"), s)
    forward = torch.compile(model, mode=compile) if compile else model  # where it fails there is nothing to compare
    x, times = torch.randint(config.vocab_size, (rows, config.block_size), device=device), []
    for step in range(warm_up + steps):
        start = time.perf_counter()
        with autocast:
            loss = forward(x, x)[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(forward.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return times[warm_up:]


def beside(folder, *args, turns=5):
    """Median milliseconds of a step of this GPT, of nanoGPT's, and of nanoGPT's with our memory setting: in turn, a
    process each."""
    kinds = ("", True), (folder, False), (folder, True)
    times = [[alone(bare_steps, *kind, *args) for kind in kinds] for _ in range(turns)]
    return np.median(np.array(times).swapaxes(0, 1).reshape(len(kinds), -1), axis=1)  # (turns, 3, steps) -> (3,)


def alone(f, *args):
    """f(*args) in a process of its own, so that peak memory is its own, too."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(f, args)


def speed(device, nanogpt="", compile=""):
    """Yields the lines of the tables that --speed prints: medians over steps; a process each for shapes and dtypes."""
    import train
    name = torch.cuda.get_device_name() if device == "cuda" else train._cpu_name()
    yield (f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, commit {train.code_version()}"
           + f", torch.compile {compile}" * bool(compile))
    heading = ["shape", "dtype", "batch", "tokens/s", "ms a step", *PHASES, "evaluation, ms", "peak MB", "GFLOP/s",
               "of the ceiling"]
    rows, ratios = [], []
    for dtype in ("float32", "bfloat16"):
        ceiling = alone(matmul_ceiling, dtype, device)
        yield f"matrix products in {dtype}: at most {ceiling / 1e9:,.0f} GFLOP/s"
        slow = ceiling < 2e10  # bfloat16 without the instructions for it
        for size, (shape, on_cpu, on_gpu) in SIZES.items():
            B, config = on_gpu if device == "cuda" else on_cpu, GPTConfig(**shape)
            if slow and size != "toy":
                yield f"{size} in {dtype} is not timed: a step would take minutes"
                continue
            steps = 3 if slow or device == "cpu" and size != "toy" else 30
            ms = alone(step_phases, shape, B, dtype, device, compile, steps)
            with torch.device("meta"):
                n = GPT(config).num_params() - config.block_size * config.n_embd
            flop = B * config.block_size * (6 * n + 12 * config.n_layer * config.n_embd * config.block_size)
            rows.append([size, dtype, f"{B} x {config.block_size}", f"{1000 * B * config.block_size / ms['step']:,.0f}",
                         f"{ms['step']:.1f}", *(f"{ms[phase]:.2f}" for phase in PHASES), f"{ms['evaluation']:.0f}",
                         f"{ms['MB']:,.0f}", f"{flop / ms['step'] / 1e6:,.1f}",
                         f"{1000 * flop / ms['step'] / ceiling:.0%}"])
            if nanogpt:
                turns, each, warm_up = (2, 2, 3) if steps == 3 else (5, 10, 40)
                ours, *theirs = beside(nanogpt, shape, B, dtype, device, compile, each, warm_up, turns=turns)
                ratios.append([size, dtype, f"{ours:.1f}", *(x for t in theirs
                                                             for x in (f"{t:.1f}", f"{t / ours:.2f}"))])
    yield from ["", *_markdown(heading, rows), "", "Milliseconds a step and tokens/s: the mean of whole steps in a "
                "row; their parts, each waited for: medians over steps. FLOP: 6 a weight and token, and attention's 12 "
                "n_layer n_embd block_size a token. One evaluation: 35 Copain and 10 label items, a block a language."]
    if nanogpt:
        yield from ["", *_markdown(["shape", "dtype", "ms a step", "nanoGPT's", "times as fast",
                                    "nanoGPT's with keep_freed_memory() of our train.py", "times as fast"], ratios), "",
                    "Medians, in turn, a process each; without data and EMA, which nanoGPT's model.py does not have."]


def growth(device):
    """Yields the lines of the tables that --growth prints: time and memory against the size of all that grows."""
    rows = []
    for n_layer, n_embd in ((4, 64), (4, 128), (6, 256), (8, 512), (12, 768)):
        shape = dict(vocab_size=50257 if n_embd == 768 else 800, block_size=128, n_layer=n_layer, n_head=n_embd // 32,
                     n_embd=n_embd)
        ms = alone(step_phases, shape, 8, "float32", device, "", 5)
        with torch.device("meta"):
            n = GPT(GPTConfig(**shape)).num_params()
        rows.append([f"{n / 1e6:.2f}M", f"{ms['step']:.1f}", f"{1000 * 8 * 128 / ms['step']:,.0f}", f"{ms['MB']:,.0f}"])
    yield from ["Model size, batches of 8 x 128, float32", "",
                *_markdown(["parameters", "ms a step", "tokens/s", "peak MB"], rows)]
    yield from ["", "Sources in the mixture, a batch of 64 x 128", "", *_markdown(
        ["sources", "ms a batch"], [[str(n), f"{alone(batch_time, n, 10 ** 6)[0]:.2f}"] for n in (2, 8, 32, 64)])]
    yield from ["", "Tokens in a source (a sparse file of uint16), a batch of 64 x 128", "", *_markdown(
        ["tokens", "ms a batch", "MB that 200 batches add"],
        [[f"{n:,}", *(f"{x:.2f}" for x in alone(batch_time, 2, n))] for n in (10 ** 6, 10 ** 7, 10 ** 8, 10 ** 9)])]
    yield from ["", "Items of the benchmark, the toy model of 0.26M parameters, one evaluation at a run's end", "",
                *_markdown(["items", "seconds", "peak MB"], [
                    [f"{10 * n:,}", *(f"{x:.2f}" for x in alone(benchmark_time, n, device))]
                    for n in (15, 50, 150, 500)])]


def batch_time(n_sources, n_tokens):
    """(median milliseconds of a batch of 64 x 128 from sources of n_tokens, MB of memory of its own that 200 of them
    add to the process: pages of the file are the system's, which takes them back when it wants to; needs Linux)."""
    def own():
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
        return (resident - shared) * mmap.PAGESIZE / 1e6

    with tempfile.TemporaryDirectory() as folder:
        sources = {}
        for i in range(n_sources):
            path = Path(folder) / f"{i}.bin"
            with open(path, "wb") as f:
                f.truncate(2 * n_tokens)
            sources[str(i)] = np.memmap(path, dtype=np.uint16, mode="r")
        mixture, weights, times = Mixture(sources, 128, 0), dict.fromkeys(sources, 1 / n_sources), []
        mixture.batch(0, 64, weights)
        before = own()
        for step in range(200):
            start = time.perf_counter()
            mixture.batch(step, 64, weights)
            times.append(1000 * (time.perf_counter() - start))
        return float(np.median(times)), own() - before


def benchmark_time(n, device):
    """(median seconds of the benchmark with n items of each of ten tasks, peak MB)."""
    benchmark, model, times = small_benchmark(n, n // 2), GPT(GPTConfig(800, 64, 4, 4, 64)).to(device), []
    for _ in range(4):
        start = time.perf_counter()
        benchmark(model)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:])), peak_memory(device)


# ------------------------------------------------------------------------------------------------------ command line
def show(world):
    """Prints one prompt of every task, with its answer, and how the controls change it."""
    languages = world.languages()
    items = {item.task: item for item in copain_items(world, 1)}
    for task, make in (("cloze", cloze_items), ("label", label_items)):
        items |= {f"{task} task, {name}": make(languages[name], languages["target"], 1)[0]
                  for name in ("english", "target")}
    for name, item in items.items():
        print(f"--- {name}   answer: {item.answer}   choices: {', '.join(item.choices)}\n{item.prompt()}")
    print(f"--- {name}, shuffled\n{item.prompt(item.shuffled_shots())}\n--- {name}, zero-shot\n{item.prompt(())}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a .pt file under runs/, or a folder with the files of a GPT-2")
    parser.add_argument("--copain", metavar="PATH",
                        help="Copain's published rows: a file of one task or a folder of all")
    parser.add_argument("--task", metavar="FILE", action="append", default=[], help="multiple choice: JSON lines with "
                        "context, choices, label; may be given several times")
    parser.add_argument("--shots", type=int, default=3, help="examples before each question of a file")
    parser.add_argument("--shots_from", metavar="FILE", help="where the examples of --task come from; default: itself")
    parser.add_argument("--tokenizer", help="of a GPT-2 folder: gpt2, or a folder with its vocab.json and merges.txt; "
                        "by default the same folder")
    parser.add_argument("--show", action="store_true", help="print every kind of prompt")
    parser.add_argument("--report", metavar="STUDY", help="draw the report of a study's folder again")
    parser.add_argument("--findings", metavar="RESULTS", help="print claims and controls of the studies in a folder")
    parser.add_argument("--speed", action="store_true", help="time every part of a training step")
    parser.add_argument("--growth", action="store_true", help="time and memory against the size of all that grows")
    parser.add_argument("--nanogpt", metavar="FOLDER", help="with --speed: nanoGPT's files, to time beside")
    parser.add_argument("--compile", default="", help="with --speed: a mode of torch.compile")
    parser.error = refuse
    flags = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if flags.show:
        show(World())
    elif flags.report:
        print(report(flags.report))
    elif flags.findings:
        print(findings(flags.findings))
    elif flags.speed or flags.growth:
        if flags.nanogpt and not (Path(flags.nanogpt) / "model.py").exists():
            raise ValueError(f"{flags.nanogpt} holds no model.py: give the folder of nanoGPT's files")
        for line in growth(device) if flags.growth else speed(device, flags.nanogpt, flags.compile):
            print(line, flush=True)
    elif flags.model:
        if Path(flags.model).is_dir():
            model, tok = load_gpt2(flags.model), load_tokenizer(flags.tokenizer or flags.model)
            if tok.vocab_size > model.config.vocab_size:
                raise ValueError(f"the tokenizer has {tok.vocab_size} tokens, {flags.model} only "
                                 f"{model.config.vocab_size}: they do not belong together")
        else:
            ckpt = load_checkpoint(flags.model)
            model, tok = model_from_checkpoint(ckpt), Tokenizer.from_json(ckpt["tokenizer"])
            print(f"{flags.model}: {ckpt['job']['name']}, step {ckpt['step']}")
        model.to(device)
        if flags.copain or flags.task:
            row = score_files(model, tok, flags.copain, flags.task, flags.shots, flags.shots_from)
        elif Path(flags.model).is_dir():
            raise ValueError(f"{flags.model} is not of the toy world: give benchmark files, --copain or --task")
        else:
            row = Benchmark(World(**ckpt["world"]), tok, *ckpt["benchmark"])(model)
        for key, value in row.items():
            for name, x in value.items() if isinstance(value, dict) else [(key, value)]:
                print(f"{name:32} {x:8.2f}")
    else:
        parser.error("give a model, --show, --report STUDY, --findings RESULTS, --speed or --growth")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        refuse(e)
