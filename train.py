"""Trains base models, continues their pretraining (CPT) in several arms, and draws the report of the study.

    python train.py                                  the study `main`, from random weights to the figure
    python train.py --study placement --seeds 5      another study of results/studies.py; five runs
    python train.py --only lora-16                   one arm; your own is a line of ARMS below
    python train.py --only ema --init PATH/base.pt --name mine     one arm from a given base
    torchrun --nproc_per_node=2 train.py ...         each model on two GPUs (or CPU processes) at once

The same command, given again, continues what was interrupted. Elhady et al. 2025 is "the paper" below.

A job is one model to train, a base or an arm, which starts from a base. prepare(job) writes its tokens;
train(job) reads them and writes NAME.pt, a checkpoint, and NAME.jsonl, a log; finish() gathers the logs.
"""
import contextlib
import functools
import math
import multiprocessing as mp
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading
import zlib
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import bench
from curriculum import Curriculum
from data import (DOCUMENT_KINDS, SOURCES, Mixture, Tokenizer, World, load_manifest, load_tokenizer,
                  one_line_parser, read_json_lines, refuse, require, sha256, train_bpe, write_corpus,
                  write_file, write_json_lines, write_text)
from ema import EMA
from model import GPT, GPTConfig, add_lora, load_checkpoint, load_gpt2, merge_lora, model_from_checkpoint
from results import report


@dataclass(frozen=True)
class Arm:
    """What one CPT run does differently from plain training. Its peak rate is Settings.lr * lr_scale."""
    curriculum: str           # what it trains on, see curriculum.py
    lr_scale: float = 1.0
    schedule: str = ""        # of the rate, one of SCHEDULES; its values, and those of base, override flags
    ema_alpha: float = 0.0    # 0: no EMA
    ema_every: int = 1        # steps between two updates of the EMA
    shadow: bool = False      # the EMA is evaluated and never trained on
    lora_rank: int = 0        # 0: no LoRA; else only its matrices are trained, unless `trained` says more
    trained: str = ""         # a regular expression: only parameters in whose names it is found are trained
    l2: float = 0.0           # L2 penalty to the base: every step moves lr * l2 of the way back to it
    base: str = ""            # the base to start from, one of BASES


ARMS = {
    "target":         Arm("target=rest"),
    "target+english": Arm("target=rest english=constant(0.2)"),
    "curriculum":     Arm("target=rest english=window(0.2, 0, 0.1)"),
    "ema":            Arm("target=rest", ema_alpha=0.92),
    # your own: a line such as those above, run with python train.py --only its-name
}
OWN_ARMS = list(ARMS)
# results/studies.py adds arms, and fills these; a base, or a schedule, is {a field of Settings: its value}
BASES, SCHEDULES, STUDIES = {"": {}}, {"": {}}, {}


def setting(default, meaning, low=0, high=10 ** 12, choices=()):
    """A field of Settings: its default, its line in --help, and the values that it may have."""
    return field(default=default, metadata={"meaning": meaning, "low": low, "high": high, "choices": choices})


ABOVE_ZERO = 1e-12
GATE = dict(gain=35.0, five=78.0, label_english=95.0, cloze_english=90.0)  # minima of a base; see Benchmark


@dataclass
class Settings:
    """Every number of a study. A preset states what differs from these values, and a flag overrides both."""
    preset: str = setting("", "laptop; gpu, with a GPU; text, with --source and --init; or smoke, basque")
    name: str = setting("", "folder of the run under runs/; the name of the preset if not given")
    study: str = setting("main", "a study of results/studies.py", choices=STUDIES)
    seeds: int = setting(1, "number of runs, each with its base; run i adds i to the three seeds below", 1)
    seed: int = setting(3000, "seed of the base: world, corpora, initial weights, order of the data")
    data_seed: int = setting(0, "seed of the order of the data in the CPT")
    bench_seed: int = setting(1234, "seed of the benchmark's items")
    only: str = setting("", "'base', or arms, with commas between; your own is a line of ARMS in train.py")
    init: str = setting("", "start the arms from this checkpoint, or from the files of a GPT-2 in a folder")
    # real text in place of the toy languages
    source: list = setting((), "NAME=FOLDER of `data.py prepare`, repeatable; first `target`, then `english`")
    task: list = setting((), "file of multiple choice, repeatable; their mean replaces the label task")
    shots: int = setting(5, "examples before every question of --task")
    # the world
    cognates: float = setting(0.5, "share of the target's nouns that are spelled as in English", 0, 0.8)
    documents: int = setting(40_000, "documents in the corpus of each language", 100)
    tokenizer: str = setting("english", "trained on english, or joint on all", choices=("english", "joint"))
    vocab_size: int = setting(540, "largest size of the vocabulary", 257, 10 ** 6)
    n_layer: int = setting(3, "blocks", 1)
    n_head: int = setting(8, "attention heads of a block", 1)
    n_embd: int = setting(128, "channels", 1)
    block_size: int = setting(64, "tokens in a row; with --init and --source the base's, up to 1024", 1)
    # pretraining of the base: Muon for the matrices of the blocks, AdamW for the rest
    base_steps: int = setting(3200, "steps of the pretraining", 1, 10 ** 6)
    base_batch_size: int = setting(32, "rows in a batch of the pretraining", 1)
    base_curriculum: str = setting("english=rest target=constant(0.003)", "mixture of the pretraining")
    muon_lr: float = setting(0.02, "peak learning rate of Muon; 0 gives its matrices to AdamW")
    base_lr: float = setting(3e-3, "peak learning rate of AdamW in the pretraining", ABOVE_ZERO)
    gate: int = setting(1, "1 trains no arm from a toy base that misses GATE, unless --init gives it", 0, 1)
    # continued pretraining with AdamW, as in the paper
    steps: int = setting(2400, "steps of an arm", 1, 10 ** 6)
    batch_size: int = setting(16, "rows in a batch of an arm", 1)
    lr: float = setting(3e-3, "peak learning rate of an arm", ABOVE_ZERO)
    warmup: float = setting(0.01, "share of the steps for the linear warm-up", 0, 1)
    lr_until: float = setting(0.15, "share of the steps after which the cosine has reached its floor", 0, 1)
    lr_floor: float = setting(0.01, "floor of the learning rate, as a share of the peak", 0, 1)
    weight_decay: float = setting(0.1, "weight decay, on matrices only, the base's too; Muon has its own")
    grad_clip: float = setting(1.0, "largest norm of the gradient, the base's too", ABOVE_ZERO)
    accumulate: int = setting(1, "parts that a batch is cut into where it does not fit into memory", 1)
    copain_items: int = setting(50, "Copain items for each of its seven rules", 1, 10_000)
    label_items: int = setting(100, "items of the label task, and of the cloze task", 1)
    validation_blocks: int = setting(128, "blocks of validation text for a perplexity", 1)
    # the machine
    device: str = setting("", "cpu or cuda; cuda where it is found", choices=("", "cpu", "cuda"))
    dtype: str = setting("", "bfloat16 if the hardware has it", choices=("", "float32", "bfloat16"))
    processes: int = setting(0, "models trained at once; 0 lets the number of cores or GPUs decide")
    compile: str = setting("", "torch.compile", choices=("", "default", "reduce-overhead", "max-autotune"))
    checkpoint_every: int = setting(250, "steps between two checkpoints", 1)

    def check(self):
        """Raises ValueError for a value that a flag cannot have."""
        for f in fields(self):
            value, low, high = getattr(self, f.name), f.metadata["low"], f.metadata["high"]
            if f.type in (int, float) and not low <= value <= high:  # NaN fails this, too
                least = "above 0" if low == ABOVE_ZERO else f"from {low}"
                raise ValueError(f"--{f.name} is {value}, expected a number {least} to {high:,}")
            if f.metadata["choices"]:
                check_name(f"--{f.name}", value, f.metadata["choices"])
        require(re.fullmatch(r"\w[\w.+-]*", self.name), f"--name is {self.name!r}: use letters, digits, _.+-")
        names = [text.split("=")[0] for text in self.source]
        swapped = "target" in names[1:] or "english" in [*names[:1], *names[2:]]
        good = len({*names}) == len(names) and all(re.match(r"\w[\w+-]*=.", text) for text in self.source)
        require(good and not swapped, f"--source is {' '.join(self.source)}, expected NAME=FOLDER, as in "
                "eu=data/eu; each name once; the first becomes `target`, the second `english`")
        require(self.warmup <= self.lr_until, f"--warmup {self.warmup} ends after --lr_until {self.lr_until}")
        GPTConfig(self.vocab_size, self.block_size, self.n_layer, self.n_head, self.n_embd)

    def world(self):
        return World(targets=(("target", self.seed, "SOV", self.cognates), ("third", self.seed, "VSO", 0.0)))

    def corpora(self):
        """{name in the curricula: the Path of a prepared source, or the name of a toy corpus}."""
        found = {}
        for i, text in enumerate(self.source):
            name, where = text.split("=", 1)
            is_toy = where in SOURCES and not Path(where, "manifest.json").exists()
            role = ("target", "english")[i] if i < 2 else name
            found[role] = where if is_toy else Path(where)
        return found or {name: name for name in SOURCES}

    def prepared(self):
        """{name in the curricula: folder} of the sources that `data.py prepare` has made."""
        return {name: where for name, where in self.corpora().items() if isinstance(where, Path)}

    def benchmark_arguments(self):
        n = 0 if self.source else self.label_items  # of the label task and the cloze task: real text has none
        return [self.copain_items, n, n, self.bench_seed, self.task, self.shots, self.block_size]

    def of_run(self, i, base="", schedule=""):
        """The settings of run i of a study, with a line of BASES and one of SCHEDULES."""
        check_name("the base of an arm", base, BASES)
        check_name("the schedule of an arm", schedule, SCHEDULES)
        for key in (differs := BASES[base] | SCHEDULES[schedule]):
            names = {*(OF_ARMS_ALONE if key in SCHEDULES[schedule] else vars(self))} - OF_THE_STUDY
            check_name(f"a key of BASES[{base!r}] or SCHEDULES[{schedule!r}]", key, names)
        return replace(self, seed=self.seed + i, data_seed=self.data_seed + i, bench_seed=self.bench_seed + i,
                       **differs)


PRESETS = {
    "laptop": {},
    "gpu": dict(documents=400_000, n_layer=8, n_head=8, n_embd=384, block_size=128, base_steps=8000,
                base_batch_size=128, base_lr=1e-3, steps=4000, batch_size=64, lr=1e-3, checkpoint_every=1000),
    # for GPT-2's 124M on real text: the paper's schedule, and parts of 8 rows, which take 10 GB of memory
    "text": dict(steps=2000, batch_size=64, accumulate=8, lr=2e-4, warmup=0.1, lr_until=1.0, lr_floor=0.033,
                 validation_blocks=32, processes=1, checkpoint_every=500),
    # real Basque, see tests/basque.py; the base sees toy patterns, as so little real text teaches it no ICL
    "basque": dict(study="basque", source=("eu=data/help-eu", "en=data/help-en", "patterns=english-patterns"),
                   n_layer=4, n_head=6, n_embd=192, block_size=128, base_steps=3000, steps=1200, lr=2e-3,
                   warmup=0.1, lr_until=1.0, lr_floor=0.033,
                   base_curriculum="english=rest patterns=constant(0.4) target=constant(0.003)"),
    "smoke": dict(documents=1500, n_layer=2, n_head=2, n_embd=32, base_steps=40, base_batch_size=8,
                  gate=0, steps=24, batch_size=8, copain_items=10, label_items=20,
                  validation_blocks=8, checkpoint_every=10),
}


def check_name(what, name, names):
    """Raises ValueError with the nearest valid name if `name` is none of `names`."""
    if name not in names:
        close = get_close_matches(name, names, n=5, cutoff=0)
        raise ValueError(f"{what} is {name!r}; the nearest of {len(names)} are {', '.join(map(repr, close))}")


def lr_factor(step, job):
    """The share of the peak rate: a linear warm-up, half a cosine until step lr_until, then lr_floor."""
    if step < job.warmup:
        return (step + 1) / job.warmup
    t = min(1.0, (step - job.warmup) / max(1, job.lr_until - job.warmup))
    return job.lr_floor + (1 - job.lr_floor) * 0.5 * (1 + math.cos(math.pi * t))


class Muon(torch.optim.Optimizer):
    """SGD with momentum and orthogonal steps; constants of Jordan (2024). torch's own is bfloat16 only."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p not in self.state:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum"].lerp_(p.grad, 0.05)
                update = orthogonal(p.grad.lerp(momentum, 0.95).to(group["dtype"]))  # Nesterov's momentum
                scale = group["lr"] * math.sqrt(max(1, p.size(0) / p.size(1)))
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)


def orthogonal(x):
    """About U V^T of a matrix x = U S V^T: five steps of a polynomial that brings singular values to 1."""
    if x.size(0) > x.size(1):
        return orthogonal(x.mT).mT
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x


def make_optimizers(model, job):
    """{"adamw": AdamW as in the paper; "muon": for the matrices of a base's blocks}."""
    s, of_muon, matrices, others = job.settings, [], [], []
    for name, p in model.named_parameters():
        if p.requires_grad and p.dim() < 2:
            others.append(p)
        elif p.requires_grad and ".h." in name and s.muon_lr and not job.start:
            of_muon.append(p)
        elif p.requires_grad:
            matrices.append(p)
    groups = [{"params": matrices, "peak_lr": job.lr, "weight_decay": s.weight_decay},
              {"params": others, "peak_lr": job.lr, "weight_decay": 0.0}]
    optimizers = {"adamw": torch.optim.AdamW(groups, lr=job.lr, betas=(0.9, 0.95), fused=True)}
    if of_muon:
        options = dict(lr=s.muon_lr, weight_decay=0.01, dtype=getattr(torch, s.dtype))
        optimizers["muon"] = Muon([{"params": of_muon, "peak_lr": s.muon_lr}], options)
    return optimizers


@torch.no_grad()
def pull_back(model, base, share):
    """Moves the weights a share of the way back to `base`: an L2 penalty, decoupled as AdamW's decay is."""
    names, params = zip(*model.named_parameters())
    torch._foreach_lerp_(params, [base[name] for name in names], share)


# ------------------------------------------------ the one loop
def train(job, line=0):
    """Trains a job to its end, from its checkpoint if it has one, and returns the rows of its log. line: that
    of the terminal where progress is shown. Under torchrun each process takes its share of every batch."""
    s, arm, (rank, n_ranks) = job.settings, job.arm, rank_and_world()
    tok, curriculum = load_tokenizer(job.data), Curriculum(arm.curriculum)
    mixture = Mixture(open_data(job, "train", curriculum.shapes, tok), s.block_size, job.sampler_seed)
    benchmark = bench.Benchmark(s.world(), tok, *s.benchmark_arguments())
    model, base = make_model(job, tok)                         # base: {name: the weights before training}
    optimizers = make_optimizers(model, job)                   # {"adamw": ..., "muon": ...}
    parts = {"model": model, **optimizers}                     # what a checkpoint holds the state of
    if arm.ema_alpha:
        parts["ema"] = EMA(model, arm.ema_alpha, arm.ema_every, arm.shadow)
    first, rows, losses, tokens = resume(job, parts, mixture.sources, tok)
    forward = torch.compile(model, mode=s.compile) if s.compile else model
    if n_ranks > 1:
        forward = torch.nn.parallel.DistributedDataParallel(forward)
    autocast = torch.autocast(s.device, torch.bfloat16, enabled=s.dtype == "bfloat16")
    bar = progress_bar(job, first, line)

    for step in range(first, job.steps + 1):                   # the last pass only measures and saves
        factor = lr_factor(step, job)                          # the learning rate, as a share of its peak

        # measure and save
        measure_now = step in job.evaluate_at() and not (rows and rows[-1]["step"] == step)
        if measure_now:
            row = {"lr": job.lr * factor} | {f"tokens_{name}": n for name, n in tokens.items()}
            rows.append(row | measure(job, step, losses, model, parts.get("ema"), benchmark, base))
            losses = []
        if step == job.steps or (step > first and step % s.checkpoint_every == 0):
            save(job, tok, step, rows, losses, tokens, parts)
        if rank == 0 and (measure_now or step == job.steps):   # at the end: if it was killed after save()
            write_json_lines(job.log, rows)
        if step == job.steps:
            bar.close()
            return rows

        # gradients: a batch is a function of the step alone, so a restart sees the same ones
        x, y, sources = mixture.batch(step, job.batch_size, curriculum.weights(step, job.steps))
        xy = torch.from_numpy(np.stack((x, y))[:, rank::n_ranks])                        # (2, B / n_ranks, T)
        if s.device == "cuda":
            xy = xy.pin_memory().to("cuda", non_blocking=True)
        loss = torch.zeros((), device=s.device)
        for i, (xs, ys) in enumerate(xy.chunk(s.accumulate, dim=1), 1):
            forward.require_backward_grad_sync = i == s.accumulate    # DDP: exchange gradients once a step
            with autocast:
                part = forward(xs, ys)[1] / s.accumulate
            part.backward()
            loss += part.detach()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), s.grad_clip)

        # the step, then what else acts on the weights
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.step()
            optimizer.zero_grad()
        if arm.l2:
            pull_back(model, base, share=arm.l2 * job.lr * factor)
        if arm.ema_alpha:
            parts["ema"].update(step + 1)

        # what to remember of it
        losses.append(torch.stack((loss, norm)))
        for name in sources:
            tokens[name] += s.block_size
        bar.update()
        if step % 10 == 0:                                     # not always: to read a loss waits for the GPU
            bar.set_postfix_str(f"loss {look_at(job, step, losses[-1:])[0, 0]:.2f}", refresh=False)


def rank_and_world():
    """(which process this is, how many there are) of those that torchrun started."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def look_at(job, step, losses):
    """Losses and norms (n, 2), averaged over the processes: all must call it. ValueError if not finite."""
    seen, (_, n_ranks) = torch.stack(losses), rank_and_world()
    if n_ranks > 1:
        dist.all_reduce(seen)
        seen /= n_ranks
    rates = "--lr" if job.start else "--muon_lr and --base_lr"
    require(seen.isfinite().all(), f"the loss or its gradient is no longer finite at step {step}. Lower "
                                   f"{rates} under another --name; what {job.path} holds was saved before")
    return seen


def measure(job, step, losses, model, ema, benchmark, base):
    """A row of the log: its origin, the losses since the last row and, in the first process, the metrics."""
    s, arm = job.settings, job.arm
    row = {"arm": job.name, "seed": s.seed, "data_seed": s.data_seed, "bench_seed": s.bench_seed,
           "step": step} | provenance(s.device)
    if losses:
        seen = look_at(job, step, losses)[:, 0]
        row |= {"train_loss": seen.mean().item(), "train_loss_max": seen.max().item()}
    if rank_and_world()[0] > 0:
        return row
    names = [name for name in ("english", "target") if name in s.corpora()]
    validation, ends = open_data(job, "val", names, benchmark.tok), step in (0, job.steps)
    with ema.applied() if arm.shadow else contextlib.nullcontext():
        whole = merge_lora(model) if arm.lora_rank else model
        return row | bench.evaluate(whole, benchmark, validation, base, s.validation_blocks, full=ends)


def progress_bar(job, first, line):
    """A line of the terminal with step, loss and time left. In a file, a line every half minute."""
    terminal, form = sys.stderr.isatty(), "{desc} {n}/{total}{postfix}, {elapsed} so far, {remaining} left"
    return tqdm(total=job.steps, initial=first, desc=job.title, position=line if terminal else 0,
                leave=not terminal, mininterval=0.2 if terminal else 30, maxinterval=60, dynamic_ncols=True,
                bar_format="|{bar:20}| " + form if terminal else form + "\n", disable=rank_and_world()[0] > 0)


@dataclass(frozen=True)
class Job:
    """One run of the loop: a base from random weights, or an arm from a base."""
    settings: Settings
    name: str
    arm: Arm
    folder: Path
    steps: int
    batch_size: int
    lr: float                  # peak
    warmup: int                # steps of linear warm-up
    lr_until: int              # step at which the cosine has reached its floor
    lr_floor: float            # share of the peak
    needs: "Job" = None        # the job whose end it starts from
    start: str = ""            # the checkpoint or GPT-2 that it starts from; '' is random weights

    @property
    def path(self):
        return self.folder / f"{self.name}.pt"

    @property
    def log(self):
        return self.folder / f"{self.name}.jsonl"

    @property
    def title(self):
        return f"{self.settings.seed} {self.arm.base} {self.name}".replace("  ", " ")

    @property
    def sampler_seed(self):
        """Seed of the order of the data. An arm's is odd, a base's even: they are never equal."""
        return 2 * self.settings.data_seed + 1 if self.start else 2 * self.settings.seed

    @property
    def data(self):
        """The folder of its tokenizer and corpora; all that they depend on is hashed into its name."""
        s = self.settings
        text = f"{s.world()} {s.documents} {s.tokenizer} {s.vocab_size} {s.validation_blocks} {contents(s)}"
        return self.folder / f"data-{zlib.crc32(text.encode()):08x}"

    def rows(self):
        """What it has measured: a dict per evaluation."""
        return [row for _, row in read_json_lines(self.log)] if self.log.exists() else []

    def finished(self):
        return self.path.exists() and any(row["step"] == self.steps for row in self.rows())

    def ready(self):
        """Whether what it starts from is there, and has reached its gate."""
        return not self.needs or (self.needs.finished() and not self.needs.below_gate())

    def below_gate(self):
        """Why a finished base is left out, in a sentence; '' if it is not. An arm has no gate."""
        s, end = self.settings, self.rows()[-1]
        for key, floor in GATE.items():
            if self.name == "base" and s.gate and not s.source and end.get(key, 100) < floor:
                return (f"{self.title} reached {end[key]:.1f} on {key}, its gate is {floor:g}: its arms have "
                        "nothing to lose. Give it more --base_steps or another --seed")
        return ""

    def evaluate_at(self):
        """A base: halfway, last. An arm: 0, 1, 2, 5, 10 ..., a tenth (the paper's English ends), last."""
        if not self.start:
            return {self.steps // 2, self.steps}
        dense = {digit * 10 ** k for digit in (1, 2, 5) for k in range(12)}
        return {step for step in dense if step < self.steps} | {0, self.steps // 10, self.steps}


def make_job(settings, i, name, base=""):
    """The job of run i that trains ARMS[name] or, if name is 'base', BASES[base]. settings: of the study."""
    arm = Arm("", base=base) if name == "base" else ARMS[name]
    s = settings.of_run(i, arm.base, arm.schedule)
    folder = Path("runs") / s.name / f"seed{s.seed}" / arm.base
    if name == "base":
        return Job(s, name, replace(arm, curriculum=s.base_curriculum), folder, s.base_steps,
                   s.base_batch_size, s.base_lr, s.base_steps // 64, lr_until=s.base_steps, lr_floor=0.0)
    needs = None if s.init else make_job(settings, i, "base", arm.base)
    return Job(s, name, arm, folder, s.steps, s.batch_size, s.lr * arm.lr_scale, round(s.warmup * s.steps),
               round(s.lr_until * s.steps), s.lr_floor, needs, start=s.init or str(needs.path))


def make_model(job, tok):
    """(the model before training, {name: its weights before LoRA is added})."""
    s = job.settings
    torch.manual_seed(s.seed)
    if not job.start:
        model = GPT(GPTConfig(tok.vocab_size, s.block_size, s.n_layer, s.n_head, s.n_embd, activation="gelu"))
    elif Path(job.start).is_dir():
        model = load_gpt2(job.start)
    else:
        model = model_from_checkpoint(load_checkpoint(job.start, tok))
    most = model.config.vocab_size
    require(tok.vocab_size <= most, f"{job.start} knows {most} tokens, the sources have {tok.vocab_size}")
    base = {name: p.detach().clone().to(s.device) for name, p in model.named_parameters()}
    if job.arm.lora_rank:
        add_lora(model, job.arm.lora_rank)
    for name, p in model.named_parameters():
        p.requires_grad_(bool(re.search(job.arm.trained or "lora_" * bool(job.arm.lora_rank), name)))
    require(any(p.requires_grad for p in model.parameters()), f"{job.arm.trained!r} names nothing to train")
    return model.to(s.device), base


# ------------------------------------------------ the files of a job
def token_file(job, name, part):
    """The file with a corpus's tokens of the part `train` or `val`. Those of toy corpora prepare() writes."""
    corpus = job.settings.corpora().get(name)
    return corpus / f"{part}.bin" if isinstance(corpus, Path) else job.data / f"{name}_{part}.bin"


def prepare(job):
    """Writes what the job reads, if no other job has: its tokenizer, and the tokens of its corpora."""
    s, world = job.settings, job.settings.world()
    job.data.mkdir(parents=True, exist_ok=True)
    if not (job.data / "tokenizer.json").exists():
        tok = shared_tokenizer(s)
        if not tok:
            names = {"english": ["english"], "joint": ["english", "target", "third-language"]}[s.tokenizer]
            documents = [write_corpus(world, name, min(4000, s.documents), s.seed) for name in names]
            tok = Tokenizer(train_bpe(sum(documents, []), s.vocab_size))
        write_text(job.data / "tokenizer.json", tok.to_json())
    tok = load_tokenizer(job.data)
    wanted = [(name, "train", s.documents, s.seed) for name in Curriculum(job.arm.curriculum).shapes]
    for name in ("english", "target"):
        wanted.append((name, "val", max(200, 4 * s.validation_blocks), s.seed + 10 ** 6))
    for name, part, n, seed in wanted:
        file = token_file(job, name, part)
        if name in s.corpora() and not file.exists():
            write_file(file, tok.encode_documents(write_corpus(world, s.corpora()[name], n, seed)).tofile)


def open_data(job, part, sources, tok):
    """{source: np.memmap of token ids} of the part 'train' or 'val'."""
    return {name: np.memmap(token_file(job, name, part), tok.dtype, mode="r") for name in sources}


def shared_tokenizer(s):
    """The Tokenizer of the sources and the base, which a GPT-2 folder may lack. ValueError if they differ."""
    found = [load_tokenizer(folder) for folder in s.prepared().values()]
    if Path(s.init).is_file():
        found.append(Tokenizer.from_json(load_checkpoint(s.init)["tokenizer"]))
    elif s.init and any(Path(s.init, name).exists() for name in ("merges.txt", "tokenizer.json")):
        found.append(load_tokenizer(s.init))
    same = len({tok.to_json() for tok in found}) < 2
    require(same, "sources and --init have different tokenizers: prepare all with one --tokenizer FOLDER")
    return found[0] if found else None


def resume(job, parts, sources, tok):
    """Loads the job's checkpoint: the next step, the rows, the losses since, {source: tokens seen}."""
    if not job.path.exists():
        return 0, [], [], dict.fromkeys(sources, 0)
    ckpt = load_checkpoint(job.path, tok)
    for name, part in parts.items():
        part.load_state_dict(ckpt[name])
    return ckpt["step"], ckpt["rows"], list(ckpt["losses"].to(job.settings.device)), ckpt["tokens"]


def save(job, tok, step, rows, losses, tokens, parts):
    s, seen = job.settings, look_at(job, step, losses) if losses else torch.zeros(0, 2)
    if rank_and_world()[0] == 0:
        ckpt = {"job": {"name": job.name, "arm": asdict(job.arm)}, "settings": asdict(s),
                "contents": contents(s), "world": asdict(s.world()), "benchmark": s.benchmark_arguments(),
                "config": asdict(parts["model"].config), "tokenizer": tok.to_json(),
                "step": step, "rows": rows, "losses": seen, "tokens": tokens,
                **{name: part.state_dict() for name, part in parts.items()}}
        write_file(job.path, lambda file: torch.save(ckpt, file))


# Settings that do not change what is trained (paths: contents() compares the files); that change no base.
NOT_COMPARED = {"name", "preset", "study", "seeds", "only", "processes", "checkpoint_every", "gate", "init",
                "source", "task"}
OF_ARMS_ALONE = {"data_seed", "steps", "batch_size", "lr", "warmup", "lr_until", "lr_floor"}
OF_THE_STUDY = {"name", "seed", "data_seed", "bench_seed", "steps"}  # equal in all of its bases and schedules


def check_same(job, ckpt):
    """ValueError if a job's checkpoint has other settings or another arm. Missing keys count as defaults."""
    old = asdict(Settings()) | ckpt["settings"] | ckpt["world"] | asdict(Arm("")) | ckpt["job"]["arm"]
    old |= ckpt["contents"]
    new = asdict(job.settings) | asdict(job.settings.world()) | asdict(job.arm) | contents(job.settings)
    ignored = NOT_COMPARED | OF_ARMS_ALONE if job.name == "base" else NOT_COMPARED
    differ = [f"{key} {old.get(key)!r} there, {new.get(key)!r} here" for key in new | ckpt["contents"]
              if key not in ignored and old.get(key) != new.get(key)]
    require(not differ, f"{job.path} was made with other settings: {'; '.join(differ)}: choose another "
                        "--name (--init BASE.pt reuses a base whose corpora are the same), or delete it")


def contents(s):
    """{what: hash} of the code of data, tasks and model, and of given files, wherever they lie."""
    paths = {name: Path(__file__).with_name(name) for name in ("data.py", "bench.py", "model.py")}
    paths |= {"init file": s.init} | {f"task {i}": path for i, path in enumerate(s.task, 1)}
    paths |= {f"source {name}": where for name, where in s.corpora().items() if s.source}
    return {what: content_hash(path) for what, path in paths.items() if path}


@functools.cache
def content_hash(path):
    """A hash of a file, or of a folder's manifest or weights; of a toy source, its name."""
    inside = [Path(path, name) for name in ("manifest.json", "model.safetensors", "pytorch_model.bin")]
    return next((sha256(file)[:12] for file in [*inside, Path(path)] if file.is_file()), str(path))


@functools.cache
def provenance(device):
    """The commit of this code, and the GPU, or the CPU with the vector instructions that torch found."""
    command = "git describe --always --dirty"
    git = subprocess.run(command, shell=True, cwd=Path(__file__).parent, text=True, capture_output=True)
    cpu = f"{platform.machine()} CPU with {torch.backends.cpu.get_cpu_capability()}"
    name = torch.cuda.get_device_name() if device == "cuda" else cpu
    return {"commit": git.stdout.strip() or "unknown",
            "machine": f"{name}, {os.cpu_count()} cores, torch {torch.__version__}"}


# ------------------------------------------------ jobs side by side
def start_worker(terminal):
    """What a process does first: it leaves Ctrl-C to its parent, and ends when its parent does."""
    def end_with_parent():
        mp.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    tqdm.set_lock(terminal)  # the processes share it


def run_job(job, planned, line, gpus, threads):
    require(contents(job.settings) == planned, "its code or its files were changed since this command began")
    set_up_torch(job.settings, line % gpus)
    torch.set_num_threads(threads)
    prepare(job)
    train(job, line)


def run_jobs(jobs, processes, gpus):
    """Trains jobs side by side, each in a process, after the one that it needs. Returns {title: failure}."""
    # glibc is to keep freed memory for the next step; idle threads are to sleep: spinning slows other jobs
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
                   "OMP_WAIT_POLICY": "PASSIVE"}
    context, threads = mp.get_context("spawn"), torch.get_num_threads()
    terminal, free = context.RLock(), list(range(processes))
    waiting, running, failed = [job for job in jobs if not job.finished()], {}, {}
    try:
        while waiting or running:
            for job in [job for job in waiting if job.ready()][:len(free)]:
                waiting.remove(job)
                line = free.pop(0)
                beside = sum(bool(other.needs) == bool(job.needs) for other in jobs)  # finished ones, too, as
                share = max(1, threads // min(processes, beside))  # the number of threads changes the bits
                handler = signal.signal(signal.SIGINT, signal.SIG_IGN)           # a new process inherits this
                pool = ProcessPoolExecutor(1, context, start_worker, (terminal,))
                running[pool.submit(run_job, job, contents(job.settings), line, gpus, share)] = job, line
                pool.shutdown(wait=False)                                        # when the job has ended
                signal.signal(signal.SIGINT, handler)
            if not running:
                break  # what is left needs a job that has failed, or is below its gate
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, line = running.pop(future)
                free.append(line)
                try:
                    future.result()
                except (ValueError, OSError) as e:            # one line for the user, with its place
                    place = rf'"{Path(__file__).parent}/(\w+.py)", line (\d+), in (?!require)'
                    places = re.findall(place, str(e.__cause__))
                    failed[job.title] = str(e) + "".join(f" ({file}:{n})" for file, n in places[-1:])
                except torch.OutOfMemoryError:
                    failed[job.title] = "the GPU's memory is full: raise --accumulate or lower --block_size"
                except BrokenExecutor:
                    failed[job.title] = "its process was killed, perhaps for memory"
                except Exception as e:                                           # a mistake in the code
                    failed[job.title] = str(e.__cause__ or e)
        return failed
    finally:
        for child in mp.active_children():
            child.kill()


def train_with_ranks(jobs):
    """Under torchrun: one job after the other, all processes together. The first error ends the run."""
    for job in jobs:
        if rank_and_world()[0] == 0:
            prepare(job)
        dist.barrier()  # the first process has written its files
        if job.ready() and not job.finished():
            train(job)
    return {}


def set_up_torch(s, gpu=0):
    if s.device == "cuda":
        torch.cuda.set_device(gpu)
        torch.set_float32_matmul_precision("high")  # float32 matrices are multiplied as TF32


# ------------------------------------------------ the study
def arm_names(s):
    """The arms that a command asks for."""
    names = s.only.replace(" ", "").split(",") if s.only not in ("", "base") else STUDIES[s.study].arms
    for name in names:
        check_name("an arm of --only (commas between; your own: a line of ARMS)", name, ARMS)
        good = re.fullmatch(r"\w[\w.+-]*", name) and name != "base"  # it names files
        require(good, f"an arm is called {name!r}: use letters, digits, _.+- and not the word base")
    return names


def reported_jobs(s):
    """The jobs of a report: arms of the study and of --only; in `main` also own ones that every run has."""
    names, runs = dict.fromkeys([*STUDIES[s.study].arms, *arm_names(s)]), range(s.seeds)
    own = [name for name in OWN_ARMS if s.study == "main" and name not in names]
    own = [name for name in own if all(make_job(s, i, name).finished() for i in runs)]
    return [make_job(s, i, name) for name in [*names, *own] for i in runs]


def check_files(s):
    """Prints which prompts are cut, and which the sources hold. ValueError if files cannot be used."""
    folders = s.prepared()
    shares = {name: load_manifest(x, s.block_size, s.validation_blocks)["val"] for name, x in folders.items()}
    require(len(set(shares.values())) < 2, f"the sources hold out {shares}: prepare all with one --val")
    if not (tok := shared_tokenizer(s)):
        require(not s.task, "--task is for real text: give sources, too, --source NAME=FOLDER")
        return
    benchmark = bench.Benchmark(s.world(), tok, *s.benchmark_arguments())  # refuses a small block_size
    for name, lost in benchmark.lost.items():
        items = benchmark.label["target"][name]
        held = {source: bench.occurrences(items, tok, np.memmap(folder / "train.bin", tok.dtype, "r"))
                for source, folder in folders.items()}
        print(f"{name}: of {len(items)} prompts, {lost['lost_shots']} lose shots, {lost['cut']} a part "
              f"of the question; questions of 12 tokens or more that the sources hold: {held}")


def plan(s):
    """The jobs of a study, each after the one that it needs. What can be refused is refused here."""
    names, jobs, languages = ["base"] if s.only == "base" else arm_names(s), {}, s.world().languages()
    for job in [make_job(s, i, name) for i in range(s.seeds) for name in names]:
        require(not s.init or (s.seeds == 1 and job.start and not job.arm.base), "--init gives the one base "
                f"of one run: it does not go with --seeds, --only base or arms of other bases ({job.name})")
        for one in filter(None, [job.needs, job]):
            jobs[one.path] = one
    for job in jobs.values():
        job.settings.check()
        arm, curriculum, parts = job.arm, Curriculum(job.arm.curriculum), rank_and_world()[1] * s.accumulate
        EMA(torch.nn.Identity(), arm.ema_alpha, arm.ema_every), re.compile(arm.trained)  # refuse mistakes
        good = arm.lr_scale > 0 and arm.lora_rank >= 0 and arm.l2 >= 0 and not (arm.l2 and arm.lora_rank)
        require(good and (arm.ema_alpha or not arm.shadow), f"arm {job.name!r}: lr_scale must be above 0, "
                "lora_rank and l2 not negative; LoRA and l2 do not go together, and shadow needs ema_alpha")
        for name in curriculum.shapes:
            check_name(f"a source in the curriculum of {job.name!r}", name, s.corpora())
            language, kinds = SOURCES.get(s.corpora()[name], ("english", {}))
            check_name(f"the language of {name!r} in SOURCES", language, languages)
            for kind in kinds:
                check_name(f"a kind of document of {name!r} in SOURCES", kind, DOCUMENT_KINDS)
        curriculum.check(job.steps)
        require(job.batch_size % parts == 0, f"{job.batch_size} rows cannot be cut into {parts} equal parts")
    for job in [*jobs.values(), *reported_jobs(s)]:  # rows of different settings are never averaged
        if job.path.exists():
            check_same(job, load_checkpoint(job.path))
        elif job.path not in jobs and job.steps in [row["step"] for row in job.rows()]:
            raise ValueError(f"{job.log} has lost its {job.path.name}: delete it, or choose another --name")
    return list(jobs.values())


def write_log(s, left_out=None):
    """Writes what results/report.py reads; returns the folder. left_out: why bases are, None during a run."""
    every, run, x = reported_jobs(s), Path("runs") / s.name, STUDIES[s.study].x(s)
    logs = [str(job.log.relative_to(run)) for job in every if left_out is None]  # newer while it runs
    info = {"study": s.study, **asdict(STUDIES[s.study]), "settings": asdict(s), "contents": contents(s),
            "x": x, "bases": BASES, "arms": {job.name: asdict(job.arm) for job in every},
            "left_out": left_out or [], "logs": logs}
    report.write_study(run / s.study, [row for job in every for row in job.rows()], info)
    return run / s.study


def finish(s, jobs, failed):
    """The end of a study: its log, its report, and an error if anything went wrong."""
    bases = [job for job in jobs if job.name == "base" and job.finished()]
    left_out = [base.below_gate() for base in bases if base.below_gate()]
    folder = write_log(s, left_out)
    if any(job.finished() for job in reported_jobs(s)):
        print(report.report(folder))
    for why in left_out:
        print(f"left out: {why}")
    if failed:
        text = "; ".join(f"{title}: {why}" for title, why in failed.items())
        raise ChildProcessError(f"{text} -- mend this; the same command runs the rest (new code: new --name)")
    require(not bases or len(left_out) < len(bases), "; ".join(left_out))


def study(s):
    set_up_torch(s, int(os.environ.get("LOCAL_RANK", 0)))
    if rank_and_world()[0] == 0:
        check_files(s)
    jobs, run = plan(s), Path("runs") / s.name
    if rank_and_world()[0] > 0:
        return train_with_ranks(jobs)
    import fcntl  # here, because Windows has none
    run.mkdir(parents=True, exist_ok=True)
    with open(run / ".lock", "a") as file:  # locked until it is closed, or this process is killed
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{run} is in use by another process: wait, or choose another --name") from None
        names = ", ".join(dict.fromkeys(job.name + " (finished before)" * job.finished() for job in jobs))
        print(f"{s.study}: {s.seeds} x {names}, in {run}\n{s.dtype}, {provenance(s.device)['machine']}\n"
              f"preset {s.preset}; an arm: {s.steps:,} steps of {s.batch_size} rows of {s.block_size}, so "
              f"{s.batch_size * s.block_size:,} tokens a step; peak learning rate {s.lr:g}", flush=True)
        write_log(s)  # for the report of a run in progress
        if dist.is_initialized():
            return finish(s, jobs, train_with_ranks(jobs))
        gpus, cores = max(1, torch.cuda.device_count()), torch.get_num_threads()
        most = cores if s.device == "cpu" else min(cores, 8 * gpus)  # processes on one GPU share its memory
        finish(s, jobs, run_jobs(jobs, s.processes or most, gpus))


# ------------------------------------------------ command line
def parse_flags(argv):
    """Settings from the command line: one flag for every field, with its meaning and its default."""
    parser, names = one_line_parser(description=__doc__), [f"--{f.name}" for f in fields(Settings)]
    for f in fields(Settings):
        kind = {"action": "append"} if f.type is list else {"type": f.type}
        words = f"{f.metadata['meaning']} (default {f.default!r})".replace("%", "%%")
        parser.add_argument(f"--{f.name}", help=words, metavar=f.type.__name__, **kind)
    given, unknown = parser.parse_known_args(argv)
    for text in unknown:
        check_name("the argument (--source and --task before each value)", text.split("=")[0], names)
    given = vars(given)
    has_gpu = torch.cuda.is_available() and given.get("device") != "cpu"
    default = "text" if given.get("source") and given.get("init") else "gpu" if has_gpu else "laptop"
    preset = given.get("preset", default)
    check_name("--preset", preset, PRESETS)
    s = Settings(**{"name": preset} | PRESETS[preset] | given | {"preset": preset})
    if s.init:
        take_from_base(s, given)
    s.check()
    require(s.device != "cuda" or has_gpu, "--device is cuda, but no GPU is found: leave --device out")
    s.device = s.device or ("cuda" if has_gpu else "cpu")
    fast = torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("amx_tile")
    if s.device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    s.dtype = s.dtype or ("bfloat16" if fast else "float32")
    return s


def take_from_base(s, given):
    """With --init, world and shape are those of the base; rows of real text may be shorter."""
    if Path(s.init).is_dir():
        known = {"source": True} | asdict(load_gpt2(s.init).config)
    else:
        ckpt = load_checkpoint(s.init)
        known = ckpt["config"] | ckpt["settings"]
        done = ckpt["step"] == known["base_steps" if ckpt["job"]["name"] == "base" else "steps"]
        require(done, f"{s.init} is unfinished, at step {ckpt['step']}: run the command that made it again")
    require(s.source or not known["source"], f"{s.init} is for real text: give sources, --source NAME=FOLDER")
    if s.source:
        most = known["block_size"]
        known["block_size"] = given.get("block_size", min(most, 1024))
        require(known["block_size"] <= most, f"--block_size is above {most}, the longest of {s.init}")
    for k in "seed cognates tokenizer vocab_size n_layer n_head n_embd block_size".split():
        x = known.get(k, getattr(s, k))
        require(given.get(k, x) == x, f"--{k} is {given.get(k)}, but {s.init} has {x}: leave --{k} out")
        setattr(s, k, x)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ  # it started this process
    try:
        require(os.name == "posix" and sys.version_info >= (3, 10),
                "nanoCPT needs Python 3.10 or newer, on Linux, macOS or WSL")
        import results.studies  # noqa: F401  here, because it imports this file, whose tables it fills
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        s = parse_flags(argv)
        if torchrun:  # meet the other processes, for at most a minute
            store, rank, world = next(dist.rendezvous("env://", timeout=timedelta(minutes=1)))
            dist.init_process_group(store=store, rank=rank, world_size=world)  # gloo on CPUs, NCCL on GPUs
        study(s)
        if dist.is_initialized():
            dist.destroy_process_group()
    except (ValueError, OSError, MemoryError, re.error) as e:
        refuse(e, code=1 if isinstance(e, ChildProcessError) else 2)
    except RuntimeError as e:
        if not torchrun:
            raise
        refuse(f"a process failed, or not all came ({str(e).splitlines()[0]}): the same command resumes; "
               f"without torchrun, unset TORCHELASTIC_RUN_ID (WORLD_SIZE is {os.getenv('WORLD_SIZE')})", 1)
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # no second one during exit
        print(f"\nstopped; to continue: python train.py {shlex.join(argv)}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    from train import main  # noqa: F811  not that of __main__: results/studies.py fills this module's tables
    main()
