"""The benchmark.

Copain (Elhady et al. 2025) asks for seven rules over short lists, with three shots: in-context learning (ICL)
of rules that the corpora rehearse, without words. The label task names the kind of a noun by a letter: it
needs ICL and the meaning of words. The cloze task asks which of four ends a sentence has: it needs no ICL.

    python bench.py --show                       prints every kind of prompt
    python bench.py A.pt B.pt --show             prints what models answer to the same prompts
    python bench.py runs/laptop/seed3000/ema.pt  benchmarks a checkpoint
    python bench.py EMA.pt --sample "the dog"    prints documents that begin with these words
    python bench.py gpt2/ --copain CoPain/ --task belebele_eu.jsonl --shots 5    a model on benchmark files
"""
import itertools
import math
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from random import Random

import numpy as np
import torch

from data import (ADJECTIVES, CATEGORIES, COPAIN_TASKS, EOT, HELD_OUT_FORMAT, HELD_OUT_RULE, LETTERS, NOUNS,
                  VERBS, Tokenizer, World, draw_list, is_reserved, list_line, load_tokenizer,
                  noun_phrase, one_line_parser, read_json_lines, require, run_command)
from model import GPTConfig, load_checkpoint, load_gpt2, model_from_checkpoint

SHOT_RULES = [task for task in COPAIN_TASKS if not task.endswith("_group")]  # _group: the list tells its rule


# ------------------------------------------------ items
@dataclass(frozen=True)
class Item:
    """A question, the choices of its answer, and the examples (shots) that stand before it."""
    task: str
    question: str
    answer: str
    choices: tuple       # texts; one of them is the answer
    between: str = "\n"  # stands between the shots
    shots: tuple = ()    # items, whose answers are shown

    def text(self, form="prompt"):
        """The shots and the question; in the form `zero-shot`, the question alone. In `shuffled` the shots
        have wrong answers: other choices or, if all have the same, the right answers in a random order."""
        shots = () if form == "zero-shot" else self.shots
        answers = [shot.answer for shot in shots]
        if form == "shuffled":
            rng = Random(self.text())
            if len(shots) > 1 and len({shot.choices for shot in shots}) == 1:
                answers = rng.sample(answers, len(answers))
            else:
                answers = [rng.choice([x for x in shot.choices if x != shot.answer]) for shot in shots]
        shown = [f"{shot.question} {answer}" for shot, answer in zip(shots, answers)]
        return self.between.join([*shown, self.question])


def label_item(task, word, letter, letters):
    separator, arrow = HELD_OUT_FORMAT
    return Item(task, f" {word}{arrow}", letter, tuple(letters), separator)


def copain_items(world, n_per_task=150, n_shots=3, seed=0, tasks=COPAIN_TASKS):
    """Items of list rules, on lists that training never draws; no two of a prompt have the same elements."""
    items = {}
    for task in tasks:
        rng, wanted = Random(f"copain/{task}/{seed}"), len(items) + n_per_task
        draws = iter(range(10_000 + 1000 * n_per_task))
        while len(items) < wanted:
            lines = {}  # {sorted elements: item}
            while len(lines) <= n_shots:
                require(next(draws, -1) >= 0, f"{task}: too few lists; one in eight is for the benchmark")
                elements, answer = draw_list(rng, task, world.max_integer)
                if all(is_reserved(order) for order in itertools.permutations(elements)):
                    item = Item(task, list_line(elements, "", HELD_OUT_FORMAT), answer, tuple(elements))
                    lines.setdefault(tuple(sorted(elements)), item)
            *shots, item = lines.values()
            item = replace(item, shots=tuple(shots))
            items[task, item.text()] = item  # one that is drawn twice counts once
    return list(items.values())


def recall_items(n_items=150, n_shots=6, seed=0):
    """The recall probe: nouns, each with a letter of its own; the question is one of the shots."""
    rng, items, nouns = Random(f"recall/{seed}"), [], [n for c in CATEGORIES for n in NOUNS[c]]
    for _ in range(n_items):
        words, letters = rng.sample(nouns, n_shots), rng.sample(LETTERS, n_shots)
        shots = [label_item("recall", word, letter, letters) for word, letter in zip(words, letters)]
        items.append(replace(rng.choice(shots), shots=tuple(shots)))
    return items


def label_items(lang, target, n_items=300, n_shots=6, seed=0):
    """The label task in `lang`, without cognates of `target`."""
    rng, items, nouns = Random(f"labels/{seed}"), [], target.own_nouns()
    for _ in range(n_items):
        letter = dict(zip(rng.sample(CATEGORIES, 2), rng.sample(LETTERS, 2)))
        kinds = rng.sample(list(letter) * (n_shots // 2), n_shots) + [rng.choice(list(letter))]
        rest = {c: iter(rng.sample(nouns[c], n_shots // 2 + 1)) for c in letter}
        *shots, item = [label_item("label", lang.words[next(rest[c])], letter[c], letter.values())
                        for c in kinds]
        items.append(replace(item, shots=tuple(shots)))
    return items


def cloze_items(lang, target, n_items=200, seed=0):
    """The cloze task in `lang`, without cognates of `target`: subject and verb admit one object."""
    rng, items, nouns = Random(f"cloze/{seed}"), [], target.own_nouns()
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


def add_shots(file, items, n_shots):
    """Items with shots, from pairs (key, item): the next n_shots items that have other keys, in a circle."""
    most = len(different := dict(items)) - 1
    require(items, f"{file} holds no question")
    require(0 <= n_shots <= most, f"--shots is {n_shots}; the questions of {file} allow 0 to {most}")
    circle = tuple(different.values()) * 2
    after = {asked: i for i, asked in enumerate(different, 1)}
    return [replace(item, shots=circle[after[asked]:after[asked] + n_shots]) for asked, item in items]


def read_copain(path, n_shots=3):
    """Items of Copain as published: JSON lines in TASK.jsonl or TASK/test.jsonl, each with one list and a
    `target`, one of its elements. Lists in another order ask the same."""
    path, found = Path(path), []
    for file in sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]:
        task, items = file.parent.name if file.stem in ("test", "data") else file.stem, []
        for where, row in read_json_lines(file):
            lists = [x for x in row.values() if isinstance(x, list)]
            elements, target = [str(x).strip() for x in sum(lists, [])], str(row.get("target")).strip()
            choices = tuple(dict.fromkeys(elements))  # a list may repeat an element
            require(len(lists) == 1 and len(choices) > 1 and target in choices, f"{where}: expected one list "
                    f"of different elements and `target`, one of them; found {str(row)[:300]}")
            item = Item(task, list_line(elements, "", HELD_OUT_FORMAT), target, choices)
            items.append((tuple(sorted(elements)), item))
        found += add_shots(file, items, n_shots)
    require(found, f"{path} holds no .jsonl file")
    return found


def read_choices(path, n_shots=5):
    """Items from JSON lines with `context`, `choices` (texts) and `label` (the number of the right one).
    Contexts that differ in white space alone ask the same."""
    items = []
    for where, row in read_json_lines(path):
        context, choices, label = row.get("context"), row.get("choices"), row.get("label")
        good = isinstance(context, str) and isinstance(choices, list) and type(label) is int  # not True
        choices = tuple(x.strip() if isinstance(x, str) else "" for x in choices) if good else ()
        good = len(set(choices) - {""}) == len(choices) > 1 and context.strip() and 0 <= label < len(choices)
        require(good, f"{where}: expected `context`, a text, `choices`, two or more different texts, and "
                      f"`label`, the number of the right one, from 0; found {str(row)[:300]}")
        item = Item(str(path), context.rstrip(), choices[label], choices, "\n\n")
        items.append((" ".join(context.split()), item))
    return add_shots(path, items, n_shots)


def read_tasks(paths, **shots):
    """{name: items} of files of multiple choice, named after their files. shots: n_shots, or nothing."""
    names = [Path(path).name.split(".")[0] for path in paths]
    require(len(set(names)) == len(names), f"two files of --task have one name, of {names}: rename one")
    return {name: read_choices(path, **shots) for name, path in zip(names, paths)}


def occurrences(items, tok, source, window=12, piece=1 << 20):
    """How many of the items' questions occur in a source, an array of token ids. Only the `window`
    tokens in the middle of a question are looked for, by their hash; shorter questions are skipped."""
    factors = np.random.default_rng(0).integers(1 << 63, size=window, dtype=np.uint64)
    asked, found = [], set()  # hashes: sums modulo 2^64
    for item in items:
        ids = np.array(tok.encode(f" {item.question}"), dtype=np.uint64)  # as inside a document
        if len(ids) >= window:
            start = (len(ids) - window) // 2
            asked.append(int(ids[start:start + window] @ factors))
    for start in range(0, len(source) - window + 1, piece):  # a source may be larger than memory
        ids = np.asarray(source[start:start + piece + window - 1], dtype=np.uint64)
        rows = np.lib.stride_tricks.sliding_window_view(ids, window)  # (piece, window)
        found.update(set(asked).intersection((rows @ factors).tolist()))
    return sum(x in found for x in asked)


# ------------------------------------------------ scoring
@lru_cache(maxsize=1 << 14)
def encode_item(tok, item, form="prompt"):
    """(prompt, choices) as ids, encoded jointly. The line's end joins if one element begins another."""
    text = item.text(form)
    ids = tok.encode(text)
    choices = [tok.encode(f"{text} {choice}")[len(ids):] for choice in item.choices]
    if item.between == "\n" and any(b[:len(a)] == a for a, b in itertools.permutations(choices, 2)):
        choices = [tok.encode(f"{text} {choice}\n")[len(ids):] for choice in item.choices]  # or 6 beats 68
    return [tok.eot, *ids], choices


def fit(tok, items, longest):
    """(the items as they fit into a context of `longest` tokens, {"lost_shots": how many lose shots, "cut":
    how many also lose the beginning of the question}). ValueError if choices do not fit."""
    fitting, lost = [], {"lost_shots": 0, "cut": 0}
    for item in items:
        n_shots, question = len(item.shots), item.question
        while (excess := longest_prompt(tok, [item]) - longest) > 0:
            if item.shots:
                item = replace(item, shots=item.shots[1:])
            else:
                rest = tok.decode(tok.encode(item.question)[excess:]).lstrip("\ufffd")  # half a letter
                require(rest, f"{item.task}: {longest} tokens cannot hold the choices of {question[:40]!r}")
                item = replace(item, question=rest)
        fitting.append(item)
        lost["lost_shots"] += len(item.shots) < n_shots
        lost["cut"] += item.question != question
    return fitting, lost


def longest_prompt(tok, items):
    """Tokens of the longest prompt, its answers shuffled or not, with its longest choice."""
    encoded = [encode_item(tok, item, form) for item in items for form in ("prompt", "shuffled")]
    return max(len(prompt) + len(choice) for prompt, choices in encoded for choice in choices)


def by_length(model, rows):
    """Yields (numbers of rows, idx (B, T)). Rows of one length go together, so that nothing is padded."""
    groups, device = defaultdict(list), next(model.parameters()).device
    for i, row in enumerate(rows):
        groups[len(row)].append(i)
    for length, group in groups.items():
        size = max(1, 2048 // length)  # rows at a time: at most 2048 tokens
        for k in range(0, len(group), size):
            chunk = group[k:k + size]
            yield chunk, torch.tensor([rows[i] for i in chunk], device=device)


@torch.no_grad()
def greedy_answers(model, tok, prompts, max_new_tokens):
    """Greedy answers to prompts (lists of token ids) up to the end of a line; None where none ends."""
    ends = tok.line_ends()
    rows, answers = [list(prompt) for prompt in prompts], [None] * len(prompts)
    for _ in range(max_new_tokens):
        unfinished = [i for i, answer in enumerate(answers) if answer is None]
        for chunk, idx in by_length(model, [rows[i][-model.config.block_size:] for i in unfinished]):
            for k, token in zip(chunk, model(idx)[0].argmax(-1).tolist()):  # logits (B, V)
                i = unfinished[k]
                rows[i].append(token)
                if token in ends:
                    answers[i] = tok.decode(rows[i][len(prompts[i]):-1]).strip()
    return answers


@torch.no_grad()
def choice_logprobs(model, prompts, choices):
    """Summed log-probability (nats) of each choice after its prompt; one list of floats per prompt.

        row fed         p0  p1  p2  c0            prompt p, choice c; the last token of c is never fed
        logits predict  p1  p2  c0  c1            so the last len(c) positions predict the choice
    """
    fed = defaultdict(list)  # {row: [(prompt number, choice number)]}; one-token choices share a row
    for n, (prompt, some) in enumerate(zip(prompts, choices)):
        for k, choice in enumerate(some):
            fed[tuple(prompt + choice[:-1])].append((n, k))
    rows, scores = list(fed), [[0.0] * len(some) for some in choices]
    for chunk, idx in by_length(model, rows):
        K = max(len(choices[n][k]) for i in chunk for n, k in fed[rows[i]])
        logits = model(idx, last_only=K == 1)[0]
        logits = logits.reshape(len(chunk), -1, logits.size(-1))[:, -K:]  # (B, V) or (B, T, V) -> (B, K, V)
        logp = logits.float().log_softmax(-1).cpu().numpy()
        for b, i in enumerate(chunk):
            for n, k in fed[rows[i]]:
                choice = choices[n][k]
                scores[n][k] = float(logp[b, range(K - len(choice), K), choice].sum())
    return scores


def copain_metrics(model, tok, items, form="prompt"):
    """Exact match overall and per task, and errors: no element of the list, or a wrong one. In percent."""
    prompts, choices = zip(*[encode_item(tok, item, form) for item in items])
    most = max(len(choice) for some in choices for choice in some)
    answers = greedy_answers(model, tok, prompts, most + 1)
    right = np.array([answer == item.answer for item, answer in zip(items, answers)])
    listed = np.array([answer in item.choices for item, answer in zip(items, answers)])
    task = np.array([item.task for item in items])
    return {"copain": 100 * float(right.mean()), "copain_not_in_list": 100 * float(np.mean(~listed)),
            "copain_wrong_element": 100 * float(np.mean(listed & ~right)),
            "copain_tasks": {t: 100 * float(right[task == t].mean()) for t in dict.fromkeys(task.tolist())}}


def choice_metrics(model, tok, items, form="prompt"):
    """The answer is the choice with the highest summed log-probability (`acc`, percent right), or the highest
    per byte of its text (`acc_norm`, lm-evaluation-harness's acc_bytes; its acc_norm is per character).
    Of n equal ones a right one counts 1 / n. `chance` is of guessing, `ppl` the right choice's perplexity."""
    prompts, choices = zip(*[encode_item(tok, item, form) for item in items])
    right, right_per_byte, logprobs = [], [], []
    for item, scores in zip(items, choice_logprobs(model, prompts, choices)):
        require(np.isfinite(scores).all(), f"{item.task}: the model is broken, it scores {scores}")
        answer = item.choices.index(item.answer)
        per_byte = [score / len(choice.encode()) for score, choice in zip(scores, item.choices)]
        for xs, found in ((scores, right), (per_byte, right_per_byte)):
            found.append(1 / xs.count(xs[answer]) if xs[answer] == max(xs) else 0)
        logprobs.append(scores[answer])
    return {"acc": 100 * float(np.mean(right)), "acc_norm": 100 * float(np.mean(right_per_byte)),
            "chance": 100 * float(np.mean([1 / len(item.choices) for item in items])), "items": len(items),
            "ppl": math.exp(min(-np.mean(logprobs), 700))}  # which overflows at 710


@torch.no_grad()
def perplexity(model, ids, n_blocks=128, block_size=None):
    """Perplexity per token of the first n_blocks blocks of ids, an array of token ids."""
    T, device = block_size or model.config.block_size, next(model.parameters()).device
    n, size = min(n_blocks, (len(ids) - 1) // T), max(1, 2048 // T)
    require(n > 0, f"validation data has {len(ids)} tokens; one block of {T} needs {T + 1}")
    xy = torch.from_numpy(np.asarray(ids[:n * T + 1], dtype=np.int64)).to(device)
    x, y = xy[:-1].view(n, T), xy[1:].view(n, T)  # (n, T)
    losses = [model(xs, ys)[1].item() * len(xs) for xs, ys in zip(x.split(size), y.split(size))]
    return math.exp(min(sum(losses) / n, 700))


def perplexities(model, tok, name, ids, n_blocks, block_size):
    """{"ppl_NAME": perplexity per token, "ppl_word_NAME": per word, "ppl_char_NAME": per character}. The last
    two can be compared between tokenizers. A word ends at white space or with its document."""
    ids = ids[:n_blocks * block_size + 1]
    text, ppl = tok.decode(ids).replace(EOT, "\n"), perplexity(model, ids, n_blocks, block_size)
    nats = len(ids) * math.log(ppl)  # tokens that ppl leaves out count like the others
    return {f"ppl_{name}": ppl, f"ppl_word_{name}": math.exp(min(nats / len(text.split()), 700)),
            f"ppl_char_{name}": math.exp(min(nats / len(text), 700))}


def parameter_shift(model, base):
    """How far the weights are from `base`, {name: tensor}. shift_l2, as in the paper's release, is the mean
    of the tensors' L2 norms of theta - theta_base; shift_relative, the norm of all over theta_base's."""
    names, params = zip(*model.named_parameters())
    shift = np.array([(p - base[name]).norm().item() for name, p in zip(names, params)])
    size = np.array([base[name].norm().item() for name in names])
    blocks = [".h." in name for name in names]
    embeddings = [".wte." in name or ".wpe." in name for name in names]
    return {"shift_l2": float(shift.mean()), "shift_embeddings": float(shift[embeddings].mean()),
            "shift_blocks": float(shift[blocks].mean()),
            "shift_relative": float(np.linalg.norm(shift) / np.linalg.norm(size))}


def token_shift(model, base, english, target):
    """How far token embeddings are from `base`: the mean L2 norm of their change, of tokens that occur in
    `target` and of tokens that occur in `english` alone. Both are arrays of token ids."""
    name = "transformer.wte.weight"
    shift = (model.state_dict()[name] - base[name]).norm(dim=1).cpu().numpy()  # (V,)
    in_english, in_target = np.zeros((2, len(shift)), bool)  # marked, not sorted: a source may be large
    in_english[english] = in_target[target] = True
    found = {"shift_target_tokens": in_target, "shift_english_tokens": in_english & ~in_target}
    return {key: float(shift[mask].mean()) for key, mask in found.items() if mask.any()}


# -------------------------------------------- a row of the log
class Benchmark:
    """All items of a world. files: of multiple choice, in place of the label task. Their prompts are cut to
    block_size; `lost` says what that costs (see fit). ValueError if one of the world itself is longer."""

    def __init__(self, world, tok, n_copain=150, n_label=300, n_cloze=200, seed=0, files=(), shots=5,
                 block_size=1024):
        self.tok, self.block_size, languages = tok, block_size, world.languages()
        self.copain = copain_items(world, n_copain, seed=seed)
        self.held_out = copain_items(world, n_copain, seed=seed, tasks=[HELD_OUT_RULE])
        self.probes = {"recall": recall_items(n_copain, seed=seed), "held_out_restricted": self.held_out}
        self.label, self.lost, target = {}, {}, languages["target"]  # label: {language: {task: items}}
        for name in ("english", "target"):
            if n_label and not files:
                self.label[name] = {"label": label_items(languages[name], target, n_label, seed=seed)}
            if n_cloze:
                self.probes[f"cloze_{name}"] = cloze_items(languages[name], target, n_cloze, seed=seed)
        for name, items in read_tasks(files, n_shots=shots).items():
            self.label.setdefault("target", {})[name], self.lost[name] = fit(tok, items, block_size)
        self.all = [self.copain, *self.probes.values(), *(x for t in self.label.values() for x in t.values())]
        for items in self.all:
            longest, task = longest_prompt(tok, items), items[0].task
            require(all(x.answer in x.choices for x in items), f"{task}: an answer is none of its choices")
            require(longest <= block_size, f"--block_size is {block_size}, {task} needs {longest}")

    def __call__(self, model, full=True):
        """The metrics of a model; accuracies in percent. Probes and most controls only with `full`.
            copain, copain_not_in_list, copain_wrong_element, copain_tasks    see copain_metrics
            copain_restricted           right where only the elements of the list compete
            five, gain                  Copain over SHOT_RULES, and how much more it is than without shots
            label_L, label_ppl_L        label task of language L, or the means over the files of --task
            ..._zero-shot, ..._shuffled controls, see Item.text
            NAME acc, NAME items, ...   of each file, see choice_metrics and fit
        """
        how = model, self.tok
        row, zero = copain_metrics(*how, self.copain), copain_metrics(*how, self.copain, "zero-shot")
        row["copain_restricted"] = choice_metrics(*how, self.copain)["acc"]
        row["copain_zero-shot"] = zero["copain"]
        row["five"] = float(np.mean([row["copain_tasks"][task] for task in SHOT_RULES]))
        row["five_zero-shot"] = float(np.mean([zero["copain_tasks"][task] for task in SHOT_RULES]))
        row["gain"] = row["five"] - row["five_zero-shot"]
        row["copain_tasks"] |= {f"{task}_zero-shot": x for task, x in zero["copain_tasks"].items()}
        for language, tasks in self.label.items():
            scores = {task: choice_metrics(*how, items) for task, items in tasks.items()}
            row[f"label_{language}"] = float(np.mean([score["acc"] for score in scores.values()]))
            ppls = [score["ppl"] ** (1 / len(scores)) for score in scores.values()]
            row[f"label_ppl_{language}"] = float(np.prod(ppls))  # the geometric mean
            for form in ("zero-shot", "shuffled") if full else ():
                right = [choice_metrics(*how, items, form)["acc"] for items in tasks.values()]
                row[f"label_{language}_{form}"] = float(np.mean(right))
            for task, lost in self.lost.items():
                row |= {f"{task} {key}": value for key, value in (scores[task] | lost).items()}
        if not full:
            return row
        for name, items in self.probes.items():
            row[name] = choice_metrics(*how, items)["acc"]
        row["held_out_rule"] = copain_metrics(*how, self.held_out)["copain"]
        row["copain_shuffled"] = copain_metrics(*how, self.copain, "shuffled")["copain"]
        return row


@torch.no_grad()
def evaluate(model, benchmark, validation, before, n_blocks=128, full=True):
    """A row of the log: perplexities on validation {name: ids}, the benchmark, the shift from `before`."""
    row = parameter_shift(model, before)
    with torch.autocast(next(model.parameters()).device.type, enabled=False):  # in bfloat16, choices tie
        for name, ids in validation.items():
            row |= perplexities(model, benchmark.tok, name, ids, n_blocks, benchmark.block_size)
        row |= benchmark(model, full)
    if len(validation) == 2:
        row |= token_shift(model, before, **validation)
    return {key: x.item() if hasattr(x, "item") else x for key, x in row.items()}  # of torch, numpy


# ------------------------------------------------ command line
def show(hide):
    """Prints a prompt of every task, and how the controls change the last. hide: answers come last."""
    tok = Tokenizer({bytes([b]): b for b in range(256)})  # any: the prompts are shown as text
    items, answers = sum(Benchmark(World(), tok, 1, 1, 1).all, []), []
    for i, item in enumerate(items, 1):
        answers.append(f"{item.task}   answer: {item.answer}   choices: {', '.join(item.choices)}")
        print(f"--- {i if hide else answers[-1]}\n{item.text()}")
    if hide:
        print("--- answers", *(f"{i}: {answer}" for i, answer in enumerate(answers, 1)), sep="\n")
    else:
        print(f"--- label, shuffled\n{item.text('shuffled')}\n--- label, zero-shot\n{item.question}")


def show_answers(paths):
    """Prints a Copain prompt (answers not all in one place of its lists), a label prompt, models' answers."""
    ckpts = [load_checkpoint(path) for path in paths]
    require(len({str(c["world"]) for c in ckpts}) == 1, "these differ in their world: give files of one run")
    models = [model_from_checkpoint(ckpt) for ckpt in ckpts]
    toks = [Tokenizer.from_json(ckpt["tokenizer"]) for ckpt in ckpts]
    items = Benchmark(World(**ckpts[0]["world"]), toks[0], *ckpts[0]["benchmark"])
    lists = (x for x in items.copain if len({shot.choices.index(shot.answer) for shot in x.shots}) > 1)
    for item in [next(lists, items.copain[0]), *(x[0] for x in items.label.get("target", {}).values())]:
        print(item.text())
        for ckpt, model, tok in zip(ckpts, models, toks):
            prompt = torch.tensor([encode_item(tok, item)[0]])                             # (1, T)
            ids = model.generate(prompt, 8, temperature=0)[0, prompt.size(1):]
            answer = tok.decode(ids.tolist()).split(EOT)[0].split("\n")[0].split(item.between)[0]
            print(f"    {ckpt['job']['name']:16}{answer}")
        print(f"    {'right':16} {item.answer}\n")


class HFModel(torch.nn.Module):
    """A causal model of transformers, in float32, with its tokenizer, as this file uses GPT and Tokenizer."""

    def __init__(self, folder):
        super().__init__()
        from transformers import AutoModelForCausalLM, AutoTokenizer  # here, because nothing else needs them
        self.model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).float().eval()
        self.tok = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.eot = self.tok.eos_token_id if self.tok.bos_token_id is None else self.tok.bos_token_id
        require(self.eot is not None, "the tokenizer has neither BOS nor EOS")
        self.config = GPTConfig(block_size=getattr(self.model.config, "max_position_embeddings", 2048))
        self.encode = partial(self.tok.encode, add_special_tokens=False)
        self.decode = partial(self.tok.decode, clean_up_tokenization_spaces=False)

    def forward(self, idx, last_only=True):
        logits = self.model(idx, use_cache=False).logits  # (B, T, V)
        return (logits[:, -1] if last_only else logits), None

    def line_ends(self):
        return {i for i in range(len(self.tok)) if "\n" in self.decode([i])} | {self.tok.eos_token_id}


def main():
    parser = one_line_parser(argument_default=None, description=__doc__)
    flag = parser.add_argument
    flag("model", nargs="*", help="a .pt file under runs/, or a folder with a GPT-2; for --show also several")
    flag("--hf", metavar="FOLDER", help="any causal model that the package transformers can load")
    flag("--copain", metavar="PATH", help="Copain's rows as published: a file, or a folder of tasks")
    flag("--task", metavar="FILE", action="append", default=[], help="multiple choice; may be given again")
    flag("--shots", type=int, help="examples before each question; default 3 for --copain, 5 for --task")
    flag("--tokenizer", help="of a GPT-2 folder: gpt2, or a folder of its files; default: itself")
    flag("--sample", metavar="TEXT", nargs="?", const="", help="print documents that begin with TEXT")
    flag("--show", action="store_true", help="print every kind of prompt; of .pt files: what they answer")
    flag("--hide", action="store_true", help="with --show: rules and answers at the end")
    flags = parser.parse_args()
    if flags.show:
        return show_answers(flags.model) if flags.model else show(flags.hide)
    require(len(flags.model) == (not flags.hf) and not flags.hide, "give one model, or --show (--hide)")
    path, ckpt, files = flags.hf or flags.model[0], None, flags.copain or flags.task
    print(path)
    require(files or flags.shots is None, "--shots goes with --copain or --task")
    if flags.hf:
        require(files and flags.sample is None, "--hf needs benchmark files, --copain or --task; no --sample")
        try:
            model = tok = HFModel(path)
        except Exception as e:  # of many kinds, with many lines
            reason = " ".join(f"{type(e).__name__}: {e}".split())[:200]
            raise ValueError(f"transformers cannot load model and tokenizer from {path}: {reason}") from None
    elif Path(path).is_dir():
        model = load_gpt2(path)
        tok = load_tokenizer(flags.tokenizer or path)
        require(tok.vocab_size <= model.config.vocab_size, f"{path} lacks tokens of its tokenizer")
    else:
        ckpt = load_checkpoint(path)
        model, tok = model_from_checkpoint(ckpt), Tokenizer.from_json(ckpt["tokenizer"])
        print(f"{ckpt['job']['name']}, step {ckpt['step']}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    if flags.sample is not None:
        torch.manual_seed(0)
        start = torch.tensor([[tok.eot, *tok.encode(flags.sample)]] * 3, device=device)  # (3, T)
        for ids in model.generate(start, 60, temperature=0.8).tolist():
            print(tok.decode(ids[1:]).split(EOT)[0], "\n")
        return
    row, T, shots = {}, model.config.block_size, {} if flags.shots is None else {"n_shots": flags.shots}
    if flags.copain:
        items, lost = fit(tok, read_copain(flags.copain, **shots), T)
        row |= copain_metrics(model, tok, items) | {f"copain {what}": n for what, n in lost.items()}
        row["copain_restricted"] = choice_metrics(model, tok, items)["acc"]
    for name, items in read_tasks(flags.task, **shots).items():
        items, lost = fit(tok, items, T)
        row |= {f"{name} {key}": x for key, x in (choice_metrics(model, tok, items) | lost).items()}
    if not row:
        require(ckpt, f"{path} is not of the toy world: give benchmark files, --copain or --task")
        row = Benchmark(World(**ckpt["world"]), tok, *ckpt["benchmark"])(model)
    row |= row.pop("copain_tasks", {})
    for name, value in row.items():
        print(f"{name:32} {value:8.2f}")


if __name__ == "__main__":
    run_command(main)
