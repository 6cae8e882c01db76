"""The benchmark, and the report that is drawn from a run's log.

Copain (Contextual Pattern Inference, Elhady et al. 2025): seven rules over short lists, no instruction, three shots,
exact match of the greedily decoded answer. It measures in-context learning (ICL) alone: no word of any language occurs.
The label task is the downstream task: name the kind of a noun by a letter, given six shots. It needs ICL and the
meaning of words; in the target language only target text can have taught the words.

    python bench.py --show                        every kind of prompt, to put on a slide
    python bench.py runs/laptop/seed0/ema.pt      benchmarks a checkpoint
    python bench.py --report runs/laptop          draws report.md, summary.json and figure.png from metrics.jsonl again
"""
import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch

from data import (CATEGORIES, COPAIN_TASKS, HELD_OUT_FORMAT, LETTERS, NOUNS, Tokenizer, World, draw_list, is_reserved,
                  label_lines, list_line)
from model import GPT, GPTConfig


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
    """Decodes all prompts (lists of token ids) greedily up to the end of the line; a list of strings, where None is an
    answer that did not end within max_new_tokens."""
    device = next(model.parameters()).device
    ends = {i for i, token in enumerate(tok.ranks) if b"\n" in token} | {tok.eot} | set(tok.encode(";"))
    rows, open_rows = [list(p) for p in prompts], list(range(len(prompts)))
    for _ in range(max_new_tokens):
        following = {}
        for chunk, idx, lengths in _batches([rows[i] for i in open_rows], device):
            logits = model(idx)[0][torch.arange(len(chunk), device=device), lengths - 1]     # (B, V)
            following |= {open_rows[i]: t for i, t in zip(chunk, logits.argmax(-1).tolist())}
        for i, t in following.items():
            rows[i].append(t)
        open_rows = [i for i in open_rows if following[i] not in ends]
        if not open_rows:
            break
    return [None if i in set(open_rows) else tok.decode(row[len(p):-1]).strip()
            for i, (row, p) in enumerate(zip(rows, prompts))]


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
        self.label = {name: label_items(lang, target if name == "english" else lang, n_label, seed=seed)
                      for name, lang in languages.items()}
        self.cache = {}

    def encode(self, items, condition):
        """Prompts and choices of items as token ids; encoded jointly, then split, as in training."""
        key = id(items), condition
        if key not in self.cache:
            prompts, choices = [], []
            for item in items:
                text = item.prompt({"few-shot": None, "zero-shot": (), "shuffled": item.shuffled_shots()}[condition])
                prompts.append([self.tok.eot, *self.tok.encode(text)])
                choices.append([self.tok.encode(f"{text} {c}")[len(prompts[-1]) - 1:] for c in item.choices])
            self.cache[key] = prompts, choices
        return self.cache[key]

    def copain_scores(self, model, condition="few-shot"):
        """Exact match overall and per task, and the errors split into: no element of the list, a wrong element."""
        prompts, choices = self.encode(self.copain, condition)
        longest = max(len(c) for cs in choices for c in cs)
        answers = greedy_answers(model, self.tok, prompts, longest + 1)
        right = np.array([a == item.answer for a, item in zip(answers, self.copain)])
        listed = np.array([a in item.elements for a, item in zip(answers, self.copain)])
        task = np.array([item.task for item in self.copain])
        return {"copain": 100 * right.mean(), "copain_not_in_list": 100 * (~listed).mean(),
                "copain_wrong_element": 100 * (listed & ~right).mean(),
                "copain_tasks": {t: 100 * right[task == t].mean() for t in COPAIN_TASKS}}

    def choice_scores(self, model, items, condition="few-shot"):
        """(accuracy in percent, perplexity of the right choice) of likelihood-scored multiple choice."""
        scores = choice_logprobs(model, *self.encode(items, condition))
        right = [item.choices.index(item.answer) for item in items]
        accuracy = np.mean([int(np.argmax(s)) == r for s, r in zip(scores, right)])
        return 100 * accuracy, math.exp(min(-np.mean([s[r] for s, r in zip(scores, right)]), 700))

    def __call__(self, model, baselines=False):
        """Metrics of a model; `baselines` adds the controls: zero-shot, shuffled answers, restricted to the list."""
        row = self.copain_scores(model)
        for name, items in self.label.items():
            row[f"label_{name}"], row[f"label_ppl_{name}"] = self.choice_scores(model, items)
        if baselines:
            row["copain_restricted"] = self.choice_scores(model, self.copain)[0]
            for condition in ("zero-shot", "shuffled"):
                row[f"copain_{condition}"] = self.copain_scores(model, condition)["copain"]
                for name, items in self.label.items():
                    row[f"label_{name}_{condition}"] = self.choice_scores(model, items, condition)[0]
        return row

    def chance(self):
        """Percent right by copying a random element of the list."""
        return 100 * float(np.mean([1 / len(item.elements) for item in self.copain]))

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
