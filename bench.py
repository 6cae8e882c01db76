"""The benchmark.

Copain (Contextual Pattern Inference, Elhady et al. 2025) asks for seven rules over short lists, with three
shots. It measures in-context learning (ICL) alone: no word of any language occurs. The label task names the
kind of a noun by a letter: it needs ICL and the meaning of words. The cloze task asks which of four ends a
sentence has: it needs no ICL. Both are asked in the target language and in English.

    python bench.py --show                                          prints every kind of prompt
    python bench.py runs/laptop/seed3000/ema.pt                     benchmarks a checkpoint
    python bench.py runs/laptop/seed3000/ema.pt --sample "the dog"  prints documents that begin so
    python bench.py gpt2/ --copain CoPain/ --task belebele_eu.jsonl --shots 5    a model on benchmark files
"""
import functools
import itertools
import math
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch

from data import (ADJECTIVES, CATEGORIES, COPAIN_TASKS, HELD_OUT_FORMAT, HELD_OUT_RULE, LETTERS, NOUNS, VERBS,
                  Tokenizer, World, draw_list, is_reserved, label_lines, list_line, load_tokenizer,
                  noun_phrase, one_line_parser, prose, read_json_lines, refuse, require)
from model import load_checkpoint, load_gpt2, model_from_checkpoint

# The two odd-one-out rules need no shots: four integers with one odd one among them say what is asked. The
# others are `five` in the log.
SHOT_RULES = [task for task in COPAIN_TASKS if not task.endswith("_group")]


def copain_chance(tasks=COPAIN_TASKS):
    """Percent right by copying a random element of the list: 3 elements, 4 in the two odd-one-out rules."""
    return 100 * float(np.mean([1 / 4 if task.endswith("_group") else 1 / 3 for task in tasks]))


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


def copain_items(world, n_per_task=150, n_shots=3, seed=0, tasks=COPAIN_TASKS):
    """Items of list rules, by default Copain's seven. Every list is from the reserve that training never
    draws from (data.is_reserved)."""
    items = {}
    for task in tasks:
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


def recall_items(n_items=150, n_shots=6, seed=0):
    """The recall probe: English nouns, each with a letter of its own; the query is one of the shots. A model
    only has to look it up there (induction)."""
    rng, items, nouns = Random(f"recall/{seed}"), [], [n for c in CATEGORIES for n in NOUNS[c]]
    for _ in range(n_items):
        words, letters = rng.sample(nouns, n_shots), rng.sample(LETTERS, n_shots)
        k = rng.randrange(n_shots)
        prompt = label_lines([*zip(words, letters), (words[k], "")], HELD_OUT_FORMAT).rstrip(" ")
        items.append(Item("recall", prompt, letters[k], tuple(letters)))
    return items


def label_items(lang, target, n_items=300, n_shots=6, seed=0):
    """The label task in `lang`, without cognates of `target`: the same in any language, translated."""
    rng, items = Random(f"labels/{seed}"), []
    nouns = target.own_nouns()
    for _ in range(n_items):
        letter = dict(zip(rng.sample(CATEGORIES, 2), rng.sample(LETTERS, 2)))
        kinds = rng.sample(list(letter) * (n_shots // 2), n_shots) + [rng.choice(list(letter))]
        unused = {c: iter(rng.sample(nouns[c], n_shots // 2 + 1)) for c in letter}
        words = [lang.words[next(unused[c])] for c in kinds]
        *answers, answer = [letter[c] for c in kinds]

        def text(words, answers):
            return label_lines(zip(words, [*answers, ""]), HELD_OUT_FORMAT).rstrip(" ")

        prompt = text(words, answers)
        shuffled = text(words, Random(prompt).sample(answers, n_shots))
        items.append(Item("label", prompt, answer, tuple(letter.values()), text(words[-1:], []), shuffled))
    return items


def cloze_items(lang, target, n_items=200, seed=0):
    """The cloze task in `lang`, without cognates of `target`. Subject and verb admit one of four objects."""
    rng, items, (before, after) = Random(f"cloze/{seed}"), [], lang.order.split("O")
    nouns = target.own_nouns()
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


def add_shots(file, rows, n_shots):
    """[(row, its examples: the rows after it, around the file's end)]."""
    require(0 <= n_shots < len(rows),
            f"--shots is {n_shots}, expected 0 or more, and fewer than the {len(rows)} rows of {file}")
    return [(row, (rows + rows)[i:i + n_shots]) for i, row in enumerate(rows, 1)]


def read_copain(path, n_shots=3):
    """Items of Copain as its authors publish it: JSON lines in TASK.jsonl or TASK/test.jsonl, each with one
    list of elements and a `target`, one of them. path: such a file, or a folder of them."""
    path, items = Path(path), []
    for file in sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]:
        rows, skipped = [], 0
        for where, row in read_json_lines(file):
            lists = [value for value in row.values() if isinstance(value, list)]
            good = len(lists) == 1 and len(lists[0]) > 1 and all(isinstance(x, (str, int)) for x in lists[0])
            require(good, f"{where}: expected one list of two or more words or integers, found {lists}")
            elements, target = [str(x).strip() for x in lists[0]], str(row.get("target")).strip()
            require("target" in row and target in elements,
                    f"{where}: the target is {row.get('target')!r}, expected one element of {elements}")
            if elements.count(target) == 1:
                rows.append((elements, target))
            else:
                skipped += 1
        if skipped:
            print(f"{file}: rows skipped because their list repeats the target: {skipped}", file=sys.stderr)
        task = file.parent.name if file.stem in ("test", "data") else file.stem
        items += [list_item(task, shots, *row) for row, shots in add_shots(file, rows, n_shots)]
    require(items, f"{path} holds no .jsonl file")
    return items


def read_choices(path, n_shots=0):
    """Items from JSON lines with `context`, `choices` (texts) and `label` (the number of the right one)."""
    rows, items = [], []
    for where, row in read_json_lines(path):
        context, choices, label = row.get("context"), row.get("choices"), row.get("label")
        good = isinstance(context, str) and context.strip()
        require(good, f"{where}: `context` is {context!r}, expected a text")
        good = isinstance(choices, list) and all(isinstance(c, str) and c.strip() for c in choices)
        require(good and len({c.strip() for c in choices}) == len(choices) > 1,
                f"{where}: `choices` is {choices!r}, expected two or more different texts")
        require(type(label) is int and 0 <= label < len(choices),  # True is no label
                f"{where}: `label` is {label!r}, expected a number from 0 to {len(choices) - 1}")
        rows.append((context.rstrip(), [c.strip() for c in choices], choices[label].strip()))
    for (context, choices, answer), shots in add_shots(path, rows, n_shots):
        answers = [right for _, _, right in shots]

        def text(answers):
            return "\n\n".join([*(f"{shot[0]} {a}" for shot, a in zip(shots, answers)), context])

        shuffled = Random(text(answers)).sample(answers, n_shots)
        items.append(Item(str(path), text(answers), answer, tuple(choices), context, text(shuffled)))
    return items


# ---------------------------------------------------------------------------------------------------- scoring
@functools.lru_cache(maxsize=1 << 16)
def encode_item(tok, item, form="prompt", longest=None):
    """(prompt, its choices) as token ids: encoded jointly, then split, as a model sees them in training. The
    prompt loses its beginning if they do not fit into `longest` tokens. form: a field of Item."""
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
    """Greedy answers to prompts (lists of token ids) up to the end of a line; None where none ends."""
    ends = {i for token, i in tok.ranks.items() if b"\n" in token} | {tok.eot}
    said, unfinished, answers = [[] for _ in prompts], list(range(len(prompts))), [None] * len(prompts)
    T = model.config.block_size
    for _ in range(max_new_tokens):
        for chunk, idx in by_length(model, [(prompts[i] + said[i])[-T:] for i in unfinished]):
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

    Choices that differ only in their last token share a row: with one-token choices, a prompt is run once."""
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
    """(perplexity over a third of n_blocks, over all) of ids, an array; without `full` the second is None."""
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
    """How far the weights are from `base`, {name: tensor}. shift_l2 is the mean over the parameter tensors of
    the L2 norm of theta - theta_base, as in the paper's release; shift_embeddings and shift_blocks are that
    of a part. shift_relative is the norm of the whole difference over that of theta_base."""
    names = [name for name, _ in model.named_parameters()]
    shift = torch.stack([(p - base[name]).norm() for name, p in model.named_parameters()]).cpu()
    size = torch.stack([base[name].norm() for name in names]).cpu()
    in_blocks = torch.tensor([".h." in name for name in names])
    in_embeddings = torch.tensor([".wte." in name or ".wpe." in name for name in names])
    return {"shift_l2": shift.mean().item(), "shift_embeddings": shift[in_embeddings].mean().item(),
            "shift_blocks": shift[in_blocks].mean().item(),
            "shift_relative": (shift.norm() / size.norm()).item()}


def copain_answers(model, tok, items, form="prompt", longest=None):
    """{item: the model's answer}."""
    encoded = [encode_item(tok, item, form, longest) for item in items]
    most = max(len(choice) for _, choices in encoded for choice in choices)
    return dict(zip(items, greedy_answers(model, tok, [prompt for prompt, _ in encoded], most + 1)))


def copain_metrics(items, answers):
    """Exact match overall and per task, and errors: no element of the list, or a wrong one. In percent."""
    right = np.array([answers[item] == item.answer for item in items])
    listed = np.array([answers[item] in item.choices for item in items])
    task = np.array([item.task for item in items])
    return {"copain": 100 * float(right.mean()), "copain_not_in_list": 100 * float(np.mean(~listed)),
            "copain_wrong_element": 100 * float(np.mean(listed & ~right)),
            "copain_tasks": {t: 100 * float(right[task == t].mean()) for t in dict.fromkeys(task.tolist())}}


def choice_scores(model, tok, items, form="prompt", longest=None):
    """{item: the log-probabilities of its choices}."""
    encoded = [encode_item(tok, item, form, longest) for item in items]
    return dict(zip(items, choice_logprobs(model, *zip(*encoded))))


def choice_metrics(items, scores):
    """(percent of right choices that are the likeliest; perplexity of the right choice)."""
    pairs = [(scores[item], item.choices.index(item.answer)) for item in items]
    right = [np.argmax(logprobs) == k for logprobs, k in pairs]
    logprob = np.mean([logprobs[k] for logprobs, k in pairs])
    return 100 * float(np.mean(right)), math.exp(min(-logprob, 700))


def copain_row(items, answers, scores):
    """The metrics that come from Copain's items: copain_metrics(), and

        copain_restricted   percent right where only the elements of the list compete
        copain_zero-shot    percent right without shots
        five                percent right of the five rules that need shots (SHOT_RULES)
        five_zero-shot      the same without shots
        gain                their difference, the gain from shots, in points

    answers: {"prompt": {item: answer}, "zero_shot": the same}; scores: {item: log-probabilities}."""
    row, zero = copain_metrics(items, answers["prompt"]), copain_metrics(items, answers["zero_shot"])
    row["copain_restricted"], _ = choice_metrics(items, scores)
    row["copain_zero-shot"] = zero["copain"]
    row["five"] = float(np.mean([row["copain_tasks"][task] for task in SHOT_RULES]))
    row["five_zero-shot"] = float(np.mean([zero["copain_tasks"][task] for task in SHOT_RULES]))
    row["gain"] = row["five"] - row["five_zero-shot"]
    row["copain_tasks"] |= {f"{task}_zero-shot": x for task, x in zero["copain_tasks"].items()}
    return row


def first_third(items):
    """The first third of the items of each task: the sample that curves are drawn from."""
    tasks = [list(some) for _, some in itertools.groupby(items, lambda item: item.task)]
    return [item for some in tasks for item in some[:math.ceil(len(some) / 3)]]


class Benchmark:
    """All items of a world. Calling it with a model gives the metrics of a row of the log: accuracies in
    percent, and `label_ppl_<language>`, the perplexity of the right label. `curve_...` are of a sample. task:
    a file of multiple choice in the place of the label task; its prompts are cut to block_size."""

    def __init__(self, world, tok, n_copain=150, n_label=300, n_cloze=200, seed=0, task="", shots=5,
                 block_size=None):
        self.tok, self.block_size, self.task, languages = tok, block_size, task, world.languages()
        self.copain, self.label, self.cloze = copain_items(world, n_copain, seed=seed), {}, {}
        self.held_out = copain_items(world, n_copain, seed=seed, tasks=[HELD_OUT_RULE])
        self.recall = recall_items(n_copain, seed=seed)
        for name in ("english", "target"):
            if n_label and not task:
                self.label[name] = label_items(languages[name], languages["target"], n_label, seed=seed)
            if n_cloze:
                self.cloze[name] = cloze_items(languages[name], languages["target"], n_cloze, seed=seed)
        if task:
            self.label["target"] = read_choices(task, shots)

    def longest(self):
        """Tokens of the longest prompt with its answer; those of a task file do not count."""
        lists = [self.copain, self.held_out, self.recall, *self.cloze.values()]
        if not self.task:
            lists += self.label.values()
        encoded = [encode_item(self.tok, item) for items in lists for item in items]
        return max(len(prompt) + len(choice) for prompt, choices in encoded for choice in choices)

    def __call__(self, model, full=True):
        """Metrics of a model: of the sample; with `full` also of all items, and of what is asked only then:
        the cloze tasks, the recall probe, the held-out rule, and controls."""
        how, row = (model, self.tok), {}
        sample = first_third(self.copain)
        items = self.copain if full else sample
        answers = {form: copain_answers(*how, items, form) for form in ("prompt", "zero_shot")}
        scores = choice_scores(*how, items)
        for key, x in copain_row(sample, answers, scores).items():
            row[f"curve_{key}"] = x
        if full:
            row |= copain_row(self.copain, answers, scores)
        for name, items in self.label.items():
            some = first_third(items)
            scores = choice_scores(*how, items if full else some, "prompt", self.block_size)
            row[f"curve_label_{name}"], row[f"curve_label_ppl_{name}"] = choice_metrics(some, scores)
            if full:
                row[f"label_{name}"], row[f"label_ppl_{name}"] = choice_metrics(items, scores)
        if not full:
            return row
        for name, items in self.cloze.items():
            row[f"cloze_{name}"], _ = choice_metrics(items, choice_scores(*how, items))
        row["recall"], _ = choice_metrics(self.recall, choice_scores(*how, self.recall))
        row["held_out_rule"] = copain_metrics(self.held_out, copain_answers(*how, self.held_out))["copain"]
        row["held_out_restricted"], _ = choice_metrics(self.held_out, choice_scores(*how, self.held_out))
        row["copain_shuffled"] = copain_metrics(sample, copain_answers(*how, sample, "shuffled"))["copain"]
        for name, items in self.label.items():
            for form, key in (("zero_shot", "zero-shot"), ("shuffled", "shuffled")):
                scores = choice_scores(*how, items, form, self.block_size)
                row[f"label_{name}_{key}"], _ = choice_metrics(items, scores)
        return row

    def check_disjoint(self, sources, lists=True):
        """Raises ValueError if a source {name: ids} of training holds a list of Copain in any format, the
        start (HEAD tokens) of a prompt, or a context of a task file that is no shorter. lists: False for real
        text, where any three numbers occur."""
        tok, (separator, arrow), numbers = self.tok, HELD_OUT_FORMAT, set()
        for item in self.copain + self.held_out if lists else []:
            for line in item.prompt.split("\n"):
                numbers.add(tuple(tok.encode(line.split(arrow)[0].replace(separator, ""))))
        asked = self.copain if self.task else sum(self.label.values(), self.copain)
        needles = {tuple(tok.encode(item.prompt)[:HEAD]) for item in asked}
        for item in self.label["target"] if self.task else []:
            for ids in (tok.encode(item.zero_shot), tok.encode(" " + item.zero_shot)):
                if len(ids) >= HEAD:
                    needles.add(tuple(ids))
        overlap, keep = max(64, *map(len, needles)), np.ones(max(tok.vocab_size, 1 << 16), dtype=bool)
        for text in (",", ";", " |", " <"):
            keep[tok.encode(text)] = False
        for name, source in sources.items():
            for start in range(0, len(source), PIECE):
                ids = np.asarray(source[start:start + PIECE + overlap])
                found = find(ids, needles) or find(ids[keep[ids]], numbers)
                text = tok.decode(found or ())
                require(not found, f"benchmark leak: {text!r} of a benchmark prompt occurs in the source "
                                   f"{name!r}: take it out of one of the two")


HEAD = 12        # tokens of a prompt that are looked for in the training sources
PIECE = 1 << 24  # tokens that are searched at a time: a source may be larger than memory


def find(ids, needles):
    """The first of `needles` (tuples of token ids) that occurs in the array ids; or None."""
    for n in {len(needle[:HEAD]) for needle in needles}:
        group = [needle for needle in needles if len(needle[:HEAD]) == n]
        heads = np.array([needle[:HEAD] for needle in group], dtype=np.uint64)                # (needles, n)
        at = np.arange(len(ids) - n + 1)
        for k in range(n):                             # keeps the places where token k is that of some head
            at = at[np.isin(ids[at + k], heads[:, k])]
        factors = np.random.default_rng(0).integers(1 << 62, size=n, dtype=np.uint64)  # then hashes the rest
        hashes = ids[at[:, None] + np.arange(n)].astype(np.uint64) @ factors
        for i in at[np.isin(hashes, heads @ factors)].tolist():
            for needle in group:
                if ids[i:i + len(needle)].tolist() == list(needle):
                    return needle
    return None


def evaluate(model, benchmark, validation, before, n_blocks=128, full=True):
    """A row of the log: perplexities on validation {name: ids}, the benchmark, the shift from `before`."""
    row = {}
    for name, ids in validation.items():
        row[f"curve_ppl_{name}"], whole = perplexity(model, ids, n_blocks, benchmark.block_size, full)
        if full:
            row[f"ppl_{name}"] = whole
    row |= benchmark(model, full)
    return row | parameter_shift(model, before)


# ----------------------------------------------------------------------------------------------- command line
def show(world):
    """Prints one prompt of every task, with its answer, and how the controls change the last one."""
    english, target, _ = world.languages().values()
    items = {item.task: item for item in copain_items(world, 1)}
    for name, make in (("cloze task", cloze_items), ("label task", label_items)):
        items[f"{name}, english"] = make(english, target, 1)[0]
        items[f"{name}, target"] = make(target, target, 1)[0]
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


def score_files(model, tok, copain=None, tasks=(), n_shots=3):
    """{metric: value} of a model on benchmark files: Copain's (a file or folder), and multiple choice."""
    row, longest = {}, model.config.block_size
    if copain:
        items = read_copain(copain, n_shots)
        row |= copain_metrics(items, copain_answers(model, tok, items, "prompt", longest - 8))
    for path in tasks:
        items = read_choices(path, n_shots)
        scores = choice_scores(model, tok, items, "prompt", longest)
        row[f"{path} %"], row[f"{path} ppl"] = choice_metrics(items, scores)
    return row


def main():
    parser = one_line_parser(argument_default=None, description=__doc__)
    flag = parser.add_argument
    flag("model", nargs="?", help="a .pt file under runs/, or a folder with the files of a GPT-2")
    flag("--copain", metavar="PATH", help="Copain's published rows: a file of one task, or a folder of all")
    flag("--task", metavar="FILE", action="append", default=[],
         help="multiple choice: JSON lines with context, choices, label; may be given several times")
    flag("--shots", type=int, default=3, help="examples before each question of a file; default 3")
    flag("--tokenizer", help="of a GPT-2 folder: gpt2, or a folder of its files; default: itself")
    flag("--sample", metavar="TEXT", nargs="?", const="",
         help="print documents that begin with TEXT; default: with a sentence in --language")
    flag("--language", default="target", help="of that sentence; default target")
    flag("--show", action="store_true", help="print every kind of prompt")
    flags = parser.parse_args()
    if flags.show:
        return show(World())
    require(flags.model, "give a model, or --show")
    require(flags.shots >= 0, f"--shots is {flags.shots}, expected 0 or more")
    files = flags.copain or flags.task
    if Path(flags.model).is_dir():
        ckpt, world, title = None, None, flags.model
        model, tok = load_gpt2(flags.model), load_tokenizer(flags.tokenizer or flags.model)
        V = model.config.vocab_size
        require(tok.vocab_size <= V, f"the tokenizer has {tok.vocab_size} tokens, {flags.model} only {V}")
        require(files or flags.sample is not None,
                f"{flags.model} is not of the toy world: give benchmark files, --copain or --task")
    else:
        ckpt = load_checkpoint(flags.model)
        model, tok = model_from_checkpoint(ckpt), Tokenizer.from_json(ckpt["tokenizer"])
        world, title = World(**ckpt["world"]), f"{flags.model}: {ckpt['job']['name']}, step {ckpt['step']}"
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    print(title)
    if flags.sample is not None:
        text, asked = flags.sample, f"that begin with {flags.sample!r}"
        if not text and world and not ckpt["settings"]["source"]:  # real text begins as a document does
            languages, name = world.languages(), flags.language
            require(name in languages, f"language {name!r} is not in this checkpoint: {', '.join(languages)}")
            text = prose(Random(0), world, languages[name]).split(".")[0] + "."
            asked = f"in the language {name}"
        print(f"--- documents {asked}")
        return sample(model, tok, text)
    if files:
        row = score_files(model, tok, flags.copain, flags.task, flags.shots)
    else:
        row = Benchmark(world, tok, *ckpt["benchmark"])(model)
    row |= row.pop("copain_tasks", {})
    for name, value in row.items():
        if not name.startswith("curve_"):
            print(f"{name:32} {value:8.2f}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, MemoryError) as e:
        refuse(e)
