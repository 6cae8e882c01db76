"""The studies: base models, continued pretraining (CPT) from them under several arms, the benchmark, the report.

    python train.py                                  the study `main` with one seed, from random weights to the figure
    python train.py --seeds 5                        five times, base included; means and 95% intervals
    python train.py --study averaging --seeds 3      another study, see STUDIES; arms that were run are not run again
    python train.py --preset smoke                   every stage in a minute; its numbers mean nothing
    python train.py --only base                      pretraining alone
    python train.py --only ema --init PATH/base.pt   one arm from a given base
    python train.py --sample runs/laptop/seed2026/ema.pt
    python train.py --help                           every setting
    torchrun --nproc_per_node=2 train.py ...         every run on two GPUs (or CPU processes) at once

Rerunning a command continues what was interrupted. Elhady et al. 2025 is "the paper" below.

Data flow of one seed:  prepare() -> data/*.bin, tokenizer.json;  train(base job) -> base.pt;  train(arm job) -> ARM.pt,
ARM.jsonl;  all seeds side by side, a process each.  Then metrics.jsonl of the study's arms, and bench.report() of it.
"""
import argparse
import contextlib
import copy
import ctypes
import dataclasses
import difflib
import functools
import hashlib
import json
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
import time
import traceback
import zlib
from dataclasses import asdict, dataclass
from multiprocessing import connection
from pathlib import Path
from random import Random

try:
    import fcntl
except ImportError:  # Windows: no lock on run folders there
    fcntl = None

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import bench
from curriculum import Curriculum
from data import (SOURCES, Mixture, Tokenizer, World, load_manifest, prose, refuse, train_bpe, write_atomically,
                  write_corpus)
from ema import InLoopEMA, ShadowEMA
from model import (GPT, GPTConfig, add_lora, load_checkpoint, load_gpt2, merge_lora, model_from_checkpoint, previous,
                   save_checkpoint)


# ------------------------------------------------------------------------------------------------- arms and studies
@dataclass(frozen=True)
class Arm:
    """What one CPT run does differently from the plainest one; the learning rate is Settings.lr * lr_scale."""
    curriculum: str
    lr_scale: float = 1.0
    ema_alpha: float = 0.0    # 0: no EMA
    ema_every: int = 1
    shadow: bool = False      # evaluate the average and train on without it
    lora_rank: int = 0        # 0: no LoRA
    trained: str = ""         # pattern of the names of the parameters that train; the others stay as they are
    l2: float = 0.0           # decoupled L2 penalty to the base: each step moves lr * l2 of the way back to it
    base: str = ""            # one of BASES to start from
    start: str = ""           # an arm to go on from, at a constant learning rate, in place of a base
    steps: int = 0            # 0: Settings.steps


TARGET = "target=rest"
REPLAY = "target=rest english=constant(0.2)"
LORA = dict(trained="lora_")
LANGUAGES = ("unseen", "seen-1", "seen-5", "seen-20", "near", "far", "none")
ARMS = {
    "target":         Arm(TARGET),
    "target+english": Arm(REPLAY),
    "curriculum":     Arm("target=rest english=window(0.2, 0, 0.1)"),
    "ema":            Arm(TARGET, ema_alpha=0.92),
    "low-lr":         Arm(TARGET, lr_scale=0.08),  # what `ema` is at every=1, see ema.py
    # what is replayed
    "english-prose":    Arm("target=rest english-prose=constant(0.2)"),
    "english-patterns": Arm("target=rest english-patterns=constant(0.2)"),
    "third-language":   Arm("target=rest third-language=constant(0.2)"),
    "english-only":     Arm("english=rest"),
    # how much of it
    "english-1":  Arm("target=rest english=constant(0.01)"),
    "english-5":  Arm("target=rest english=constant(0.05)"),
    "english-50": Arm("target=rest english=constant(0.5)"),
    # when: the first three see as much English as the curriculum does
    "middle":   Arm("target=rest english=window(0.2, 0.45, 0.55)"),
    "last":     Arm("target=rest english=window(0.2, 0.9, 1)"),
    "spread":   Arm("target=rest english=constant(0.02)"),
    "first-5":  Arm("target=rest english=window(0.2, 0, 0.05)"),
    "first-20": Arm("target=rest english=window(0.2, 0, 0.2)"),
    "first-40": Arm("target=rest english=window(0.2, 0, 0.4)"),
    # averages, and learning rates without them
    "ema-0.8":      Arm(TARGET, ema_alpha=0.8),
    "ema-0.992":    Arm(TARGET, ema_alpha=0.992),
    "ema-every-10": Arm(TARGET, ema_alpha=0.92, ema_every=10),
    "shadow-ema":   Arm(TARGET, ema_alpha=0.992, shadow=True),
    "flipped-ema":  Arm(TARGET, ema_alpha=-0.08),
    "lr-0.008":     Arm(TARGET, lr_scale=0.008),
    "lr-0.03":      Arm(TARGET, lr_scale=0.03),
    "lr-0.2":       Arm(TARGET, lr_scale=0.2),
    "lr-0.5":       Arm(TARGET, lr_scale=0.5),
    "lr-2":         Arm(TARGET, lr_scale=2.0),
    # what may move
    "lora-1":           Arm(TARGET, lora_rank=1, lr_scale=4.0, **LORA),
    "lora-4":           Arm(TARGET, lora_rank=4, lr_scale=4.0, **LORA),
    "lora-16":          Arm(TARGET, lora_rank=16, lr_scale=2.0, **LORA),
    "lora-64":          Arm(TARGET, lora_rank=64, lr_scale=2.0, **LORA),
    "lora-16+wte":      Arm(TARGET, lora_rank=16, trained="lora_|wte"),
    "l2-1":             Arm(TARGET, l2=1.0),
    "l2-10":            Arm(TARGET, l2=10.0),
    "frozen-attention": Arm(TARGET, trained=r"^(?!.*\.attn\.)"),
    "frozen-blocks":    Arm(TARGET, trained=r"wte|wpe|ln_f"),
    # other bases: how much of the target language they have seen, how far it is from English
    **{f"{base}{arm}": Arm(curriculum, base=base) for base in LANGUAGES
       for arm, curriculum in (("", TARGET), ("+english", REPLAY))},
    # after an arm, fifty steps of English
    **{f"{arm}-then-english": Arm("english=rest", lr_scale=0.2, start=arm, steps=50)
       for arm in ("target", "target+english", "curriculum", "ema", "low-lr")},
}

BASES = {  # what is different in them; "" is the base of `main`, which has seen 0.7% of a language with 40% cognates
    "": {},
    "unseen":  dict(base_curriculum="english=rest"),
    "seen-1":  dict(base_curriculum="english=rest target=constant(0.01)"),
    "seen-5":  dict(base_curriculum="english=rest target=constant(0.05)"),
    "seen-20": dict(base_curriculum="english=rest target=constant(0.2)"),
    "near":    dict(target_order="SVO", cognates=0.5),
    "far":     dict(target_order="SOV", cognates=0.25),
    "none":    dict(target_order="VSO", cognates=0.0),
}


@dataclass(frozen=True)
class Study:
    """A question, the arms that answer it, and which of them to compare; by default each with the first."""
    question: str
    arms: list
    pairs: tuple = ()


STUDIES = {
    "main": Study("Does English in the mixture matter, and do a curriculum or an EMA stand in for it?",
                  "target target+english curriculum ema low-lr".split()),
    "replay-content": Study("Is it English, or the few-shot-like documents in it?",
                            "target target+english english-prose english-patterns third-language english-only".split()),
    "replay-dose": Study("How much English is enough?", "target english-1 english-5 target+english english-50".split()),
    "placement": Study("The same English at another time, and in longer or shorter windows: what does it take?",
                       "target target+english curriculum middle last spread first-5 first-20 first-40".split()),
    "averaging": Study(
        "Does an EMA of the weights do anything that a smaller learning rate does not?",
        "target target+english ema low-lr ema-0.8 lr-0.2 ema-0.992 lr-0.008 ema-every-10 shadow-ema flipped-ema "
        "lr-0.03 lr-0.5 lr-2".split(),
        (("ema", "low-lr"), ("ema-0.8", "lr-0.2"), ("ema-0.992", "lr-0.008"), ("ema-every-10", "low-lr"),
         ("ema", "target"), ("ema-every-10", "target"), ("shadow-ema", "target"), ("flipped-ema", "target"))),
    "constraints": Study("Do weights that may not move far keep the ability, and what does it cost?",
                         "target target+english lora-1 lora-4 lora-16 lora-64 lora-16+wte l2-1 l2-10 frozen-attention "
                         "frozen-blocks".split()),
    "languages": Study(
        "Does English matter more, the less of the language the base has seen, and the further it is from English?",
        [f"{base}{arm}" for base in LANGUAGES for arm in ("", "+english")],
        tuple((f"{base}+english", base) for base in LANGUAGES)),
    "relearn": Study("After fifty steps of English alone: was in-context learning suppressed or erased?",
                     [f"{arm}-then-english" for arm in ("target", "target+english", "curriculum", "ema", "low-lr")]),
}


# --------------------------------------------------------------------------------------------------------- settings
@dataclass
class Settings:
    """Every number of a study. A preset states what differs from these; a flag overrides both."""
    # the study
    preset: str = ""              # laptop, gpu or smoke; by default gpu where CUDA is found, else laptop
    name: str = ""                # the run's folder under runs/; by default the preset's name
    study: str = "main"           # one of STUDIES
    seeds: int = 1                # how many runs, base included; each adds 1 to the three seeds below
    seed: int = 2026              # of the base: world, corpora, initial weights, order of the data in pretraining
    data_seed: int = 0            # of the order of the data in the CPT
    bench_seed: int = 1234        # of the benchmark's items
    only: str = ""                # 'base', or names of arms separated by commas; by default the study's arms
    init: str = ""                # a base to start the arms from: a checkpoint, or a folder with the files of a GPT-2
    # real text in place of the toy languages
    source: tuple[str, ...] = ()  # NAME=FOLDER made by `data.py prepare`; the first is the target, the second English
    task: str = ""                # a file of multiple choice in the target language (see bench.py), for the label task
    shots: int = 5                # examples before each of its questions
    # one arm of your own in place of the study's, called --only
    weights: str = ""             # its constant mixture: NAME=SHARE,NAME=SHARE
    curriculum: str = ""          # or its schedule, see curriculum.py
    ema_alpha: float = 0.0        # 0: no EMA
    ema_every: int = 1
    # the world
    max_integer: int = 19         # integers in lists run from 0 to this
    list_lengths: tuple = (3,)    # elements in a training list
    target_order: str = "SOV"     # word order of the target language
    cognates: float = 0.4         # share of its nouns that are spelled as in English
    documents: int = 40_000       # in the corpus of each language
    vocab_size: int = 2048        # at most; the toy world needs fewer
    # the model
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 64
    block_size: int = 64
    # pretraining of the base: Muon on the matrices of the blocks, AdamW on the rest
    base_steps: int = 2600
    base_batch_size: int = 32
    base_curriculum: str = "english=rest target=constant(0.007)"  # real base models have seen a little of everything
    muon_lr: float = 0.02
    base_lr: float = 3e-3
    base_warmup: int = 50         # steps
    gate_copain: float = 50.0     # percent; below it there is no ICL to lose, and the study stops
    gate_label: float = 90.0      # percent, English label task
    gate_cloze: float = 90.0      # percent, English cloze task
    # continued pretraining: AdamW as in the paper
    steps: int = 1000
    batch_size: int = 16
    lr: float = 5e-3              # peak
    warmup: float = 0.01          # share of the steps
    lr_until: float = 0.4         # share of the steps at which the cosine has reached its floor
    lr_floor: float = 0.05        # share of the peak
    weight_decay: float = 0.1     # on matrices only
    grad_clip: float = 1.0
    accumulate: int = 1           # micro-batches that a batch is cut into where it does not fit into memory
    # evaluation
    copain_items: int = 150       # per task, of which there are seven
    label_items: int = 300
    cloze_items: int = 200
    validation_blocks: int = 128
    # the machine
    device: str = ""              # cpu or cuda; by default cuda where it is found
    dtype: str = ""               # float32 or bfloat16; by default bfloat16 where the hardware is fast at it
    processes: int = 0            # bases or arms that run at once; by default cores + 1, with GPUs up to 8 on each
    compile: str = ""             # one of COMPILE_MODES, for torch.compile; by default none
    checkpoint_every: int = 250   # steps between checkpoints

    def world(self):
        return World(self.max_integer, tuple(self.list_lengths),
                     (("target", self.seed, self.target_order, self.cognates), ("third", self.seed, "VSO", 0.0)))

    def corpora(self):
        """{name within the studies: folder of a prepared source, or name of a toy corpus}; {} in the toy world."""
        pairs = [text.partition("=")[::2] for text in self.source]
        return {("target", "english")[i] if i < 2 else name: where for i, (name, where) in enumerate(pairs)}

    def benchmark_arguments(self):
        n_label, n_cloze = (0, 0) if self.source else (self.label_items, self.cloze_items)
        return [self.copain_items, n_label, n_cloze, self.bench_seed, self.task, self.shots, self.block_size]

    def run(self, i, base=""):
        """The settings of run i of a study from the base of that name in BASES."""
        return dataclasses.replace(self, seed=self.seed + i, data_seed=self.data_seed + i,
                                   bench_seed=self.bench_seed + i, **BASES[base])


PRESETS = {
    "laptop": {},
    "gpu": dict(max_integer=99, list_lengths=(3, 4, 5), documents=400_000, n_layer=8, n_head=8, n_embd=384,
                block_size=128, base_steps=8000, base_batch_size=128, steps=4000, batch_size=64, lr=1e-3,
                base_lr=1e-3, base_warmup=200, checkpoint_every=1000),
    "smoke": dict(documents=1500, n_layer=2, n_head=2, n_embd=32, base_steps=40, base_batch_size=8, base_warmup=5,
                  steps=24, batch_size=8, gate_copain=0, gate_label=0, gate_cloze=0, copain_items=10, label_items=20,
                  cloze_items=20, validation_blocks=8, checkpoint_every=10),
}


COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True)
class Job:
    """One run of the loop: the base, or one arm of the CPT."""
    name: str
    arm: Arm
    steps: int
    batch_size: int
    lr: float
    warmup: int
    lr_until: int
    lr_floor: float
    muon_lr: float = 0.0       # 0: AdamW for everything

    def evaluate_at(self):
        """Steps to evaluate at, dense at the start as in the paper: 0, 1, 2, 5, 10, 20, 50 ... and the last; a base in
        the middle and at the end of its run."""
        if self.muon_lr:
            return {self.steps // 2, self.steps}
        return {0, self.steps} | {x for x in (d * 10 ** k for k in range(8) for d in (1, 2, 5)) if x < self.steps}


def base_job(s):
    return Job("base", Arm(s.base_curriculum), s.base_steps, s.base_batch_size, s.base_lr, s.base_warmup, s.base_steps,
               0.0, muon_lr=s.muon_lr)


def arm_job(s, name):
    arm = ARMS[name]
    steps, lr = arm.steps or s.steps, s.lr * arm.lr_scale
    if arm.start:
        return Job(name, arm, steps, s.batch_size, lr, 0, 0, 1.0)
    return Job(name, arm, steps, s.batch_size, lr, round(s.warmup * steps), round(s.lr_until * steps), s.lr_floor)


# ------------------------------------------------------------------------------------- learning rate and optimizers
def lr_factor(step, job):
    """Linear warm-up, then half a cosine from 1 to lr_floor at step lr_until, then lr_floor: a share of the peak."""
    if step < job.warmup:
        return (step + 1) / job.warmup
    t = min(1.0, (step - job.warmup) / max(1, job.lr_until - job.warmup))
    return job.lr_floor + (1 - job.lr_floor) * 0.5 * (1 + math.cos(math.pi * t))


class StackedMuon(torch.optim.Muon):
    """torch.optim.Muon with the matrices of one shape stacked, where torch orthogonalises one by one in bfloat16: the
    products are so small that most of the time is spent on starting them, and many CPUs emulate bfloat16."""

    def __init__(self, params, dtype, **settings):
        super().__init__(params, **settings)
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params, lr = group["params"], group["lr"]
            for p in params:
                if p not in self.state:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            grads, averages = [p.grad for p in params], [self.state[p]["momentum_buffer"] for p in params]
            torch._foreach_lerp_(averages, grads, 1 - group["momentum"])
            updates = torch._foreach_lerp(grads, averages, group["momentum"])               # Nesterov's momentum
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            for rows, cols in dict.fromkeys(p.shape for p in params):
                same = [i for i, p in enumerate(params) if p.shape == (rows, cols)]
                x = torch.stack([updates[i] for i in same]).to(self.dtype)                  # (n, rows, cols)
                x = newton_schulz(x, group["ns_coefficients"], group["ns_steps"], group["eps"])
                torch._foreach_add_([params[i] for i in same], x.to(params[0].dtype).unbind(),
                                    alpha=-lr * math.sqrt(max(1, rows / cols)))              # as torch scales it


def newton_schulz(x, coefficients, steps, eps):
    """About U V^T of each matrix U S V^T in x (n, rows, cols): a polynomial of it brings the singular values near 1."""
    a, b, c = coefficients
    tall = x.size(1) > x.size(2)
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)   # (a + b gram + c gram^2) x
    return x.mT if tall else x


@torch.no_grad()
def pull_back(model, before, share):
    """Moves the weights by a share of the way back to `before` ({name: tensor}): the L2 penalty 0.5 |theta - before|^2,
    decoupled from Adam as AdamW's weight decay is."""
    names, params = zip(*model.named_parameters())
    torch._foreach_lerp_(params, [before[n] for n in names], share)


def make_optimizers(model, job, s):
    """Muon on the blocks' matrices where the job asks for it, AdamW with decay on matrices only for the rest."""
    params = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    blocks = [p for n, p in params if p.dim() == 2 and ".h." in n] if job.muon_lr else []
    rest = [p for n, p in params if not any(p is q for q in blocks)]
    groups = [{"params": [p for p in rest if p.dim() >= 2], "weight_decay": s.weight_decay},
              {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0}]
    optimizers = [torch.optim.AdamW(groups, lr=job.lr, betas=(0.9, 0.95), fused=True)]
    if blocks:
        optimizers.append(StackedMuon(blocks, getattr(torch, s.dtype), lr=job.muon_lr, weight_decay=0.01))
    for group in (g for optimizer in optimizers for g in optimizer.param_groups):
        group["peak_lr"] = group["lr"]
    return optimizers


# ---------------------------------------------------------------------------------------------------- files of a run
def write_lines(path, rows):
    """A log, not flushed to disk: checkpoints hold its rows, too."""
    write_atomically(path, lambda p: p.write_text("".join(json.dumps(row) + "\n" for row in rows)), flush=False)


def newest(path):
    """The checkpoint at path, or if that is damaged or missing the one before it, which then takes its place; None if
    there is neither."""
    for p in (path, previous(path)):
        try:
            if p.exists():
                ckpt = load_checkpoint(p)
                os.replace(p, path)
                return ckpt
        except ValueError as e:
            damaged = p.with_suffix(".damaged")
            os.replace(p, damaged)
            print(f"warning: {e}. It is now {damaged.name}; going on from what was saved before it", file=sys.stderr)


def so_far(path):
    """{step, rows, job, settings} of the newest checkpoint at path, None if there is none; a file is read once."""
    return _so_far(path.absolute(), path.stat().st_mtime_ns) if path.exists() else _so_far.__wrapped__(path, 0)


@functools.cache
def _so_far(path, written):
    ckpt = newest(path)
    return ckpt and {key: ckpt[key] for key in ("step", "rows", "job", "settings")}


@contextlib.contextmanager
def owned(path, wait=0.0):
    """Within the block this process alone owns the lock file at path. The operating system drops the lock with its
    owner, however that ends. Raises ValueError if another process has it for longer than `wait` seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as f:
        deadline = time.monotonic() + wait
        while fcntl:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ValueError(f"{path.parent} is in use by another process: wait for it, or choose another "
                                     "--name") from None
                time.sleep(0.05)
        yield


@functools.cache
def code_version():
    """The commit of this code, with -dirty if it was changed since."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, text=True,
                         capture_output=True)
    return git.stdout.strip() or "unknown"


def prepare(s, folder, sources, tokenizer=None):
    """Writes those of the sources of one seed that are missing, as token files, and first the tokenizer: the one given
    as JSON, that of the prepared sources, or one trained on the toy languages. Raises ValueError if tokenizers differ
    or a benchmark prompt is longer than a block."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    world, path, corpora = s.world(), folder / "tokenizer.json", s.corpora()
    prepared = {name: Path(where) / "tokenizer.json" for name, where in corpora.items() if where not in SOURCES}
    for name, file in prepared.items():
        tokenizer = tokenizer or file.read_text()
        if file.read_text() != tokenizer:
            raise ValueError(f"source {name!r} ({file.parent}) was encoded with another tokenizer than "
                             f"{s.init or next(iter(corpora.values()))}: prepare it again with --tokenizer FOLDER")
    if not path.exists():
        if not tokenizer:
            texts = [text for name in ("english", "target", "third-language")
                     for text in write_corpus(world, name, min(4000, s.documents), s.seed)]
            tokenizer = Tokenizer(train_bpe(texts, s.vocab_size)).to_json()
        write_atomically(path, lambda p: p.write_text(tokenizer))
    missing = [name for name in sources
               if name not in prepared and not (folder / "data" / f"{name}_train.bin").exists()]
    tok = Tokenizer.from_json(path.read_text())
    benchmark = bench.Benchmark(world, tok, *s.benchmark_arguments())
    if benchmark.longest > s.block_size:
        raise ValueError(f"the longest benchmark prompt has {benchmark.longest} tokens with its answer, block_size is "
                         f"{s.block_size}: raise --block_size")
    for name in missing:
        parts, corpus = [("train", s.documents, s.seed)], corpora.get(name, name)
        if name in ("english", "target"):
            parts.insert(0, ("val", max(200, 4 * s.validation_blocks), s.seed + 10 ** 6))
        for part, n_documents, seed in parts:
            ids = tok.encode_documents(write_corpus(world, corpus, n_documents, seed))
            write_atomically(folder / "data" / f"{name}_{part}.bin", ids.tofile)


def open_data(s, folder, part, sources, dtype=np.uint16):
    """{source: np.memmap of token ids}, from the prepared sources where there are some."""
    files = {name: Path(where) / f"{part}.bin" for name, where in s.corpora().items() if where not in SOURCES}
    return {name: np.memmap(files.get(name, folder / "data" / f"{name}_{part}.bin"), dtype=dtype, mode="r")
            for name in sources}


def load_start(path):
    """What an arm starts from, as a checkpoint: one of ours, or a GPT-2 from the folder of its files."""
    if not Path(path).is_dir():
        return load_checkpoint(path)
    model = load_gpt2(path)
    return {"config": asdict(model.config), "model": model.state_dict(), "benchmark": None, "tokenizer": None}


# ------------------------------------------------------------------------------------- several processes, one model
def ranks():
    """(rank, number) of the processes that train one model together (torch.distributed); (0, 1) of one alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def micro_batches(x, y, parts, device):
    """Yields (x, y, share of the batch, whether it is the last) of this rank's micro-batches of a batch x, y (B, T),
    cut into `parts` but no fewer than ranks. Shares are times the number of ranks, which average their gradients."""
    rank, world = ranks()
    mine = np.array_split(np.stack((x, y), axis=1), max(parts, world))[rank::world]            # of (B / parts, 2, T)
    for i, xy in enumerate(mine, 1):
        xy = torch.from_numpy(xy)
        if device == "cuda":
            xy = xy.pin_memory().to(device, non_blocking=True)
        yield *xy.unbind(1), world * len(xy) / len(x), i == len(mine)


def mean_over_ranks(x):
    """The mean of a tensor over the ranks, on each of them."""
    if ranks()[1] > 1:
        dist.all_reduce(x)
        x /= ranks()[1]
    return x


def any_rank(flag):
    """Whether the flag is true on any rank."""
    return flag if ranks()[1] == 1 else mean_over_ranks(torch.tensor(float(flag))).item() > 0  # no GPU is waited for


def wrapped(model, mode, rows, block_size, autocast=contextlib.nullcontext()):
    """model for the forward passes of training, with the same weights: through torch.compile where a mode of it is
    given, unless that fails on a batch of `rows` zeros, as it does without a compiler; and data-parallel."""
    out, device = model, next(model.parameters()).device
    if mode:
        try:
            torch.compiler.reset()  # under torchrun one process trains many models, and torch keeps few graphs
            out = torch.compile(model, mode=mode)
            x, y = torch.zeros(rows, 2, block_size, dtype=torch.long, device=device).unbind(1)  # as micro_batches gives
            with autocast:
                loss = out(x, y)[1]
            loss.backward()
            model.zero_grad()
        except Exception as e:
            print(f"warning: torch.compile failed ({type(e).__name__}), going on without", file=sys.stderr)
            out = model
    return DistributedDataParallel(out) if ranks()[1] > 1 else out


# --------------------------------------------------------------------------------------------------------- the loop
def train(s, job, folder, base=None, tell=lambda step, loss: None, stopping=lambda: False):
    """Runs one job to its end, from its checkpoint if it has one; returns the rows of its log.

    base: the checkpoint that CPT starts from; None trains from random weights. tell(step, mean loss since the last
    evaluation) is called now and then; when stopping() turns true, a checkpoint is written and the rows so far return.
    """
    path, device, (rank, world) = folder / f"{job.name}.pt", s.device, ranks()
    if job.batch_size < world:
        raise ValueError(f"a batch of {job.batch_size} rows cannot be cut for {world} processes: start fewer")
    tok = Tokenizer.from_json((folder / "tokenizer.json").read_text())
    curriculum = Curriculum(job.arm.curriculum)
    mixture = Mixture(open_data(s, folder, "train", curriculum.shapes, tok.dtype), s.block_size,
                      seed=2 * s.data_seed + 1 if base else 2 * s.seed)
    benchmark = bench.Benchmark(s.world(), tok, *s.benchmark_arguments())
    benchmark.check_disjoint(mixture.sources, lists=not s.source)  # at every start: a file may have been exchanged
    validation = open_data(s, folder, "val", [x for x in ("english", "target") if x in (s.corpora() or SOURCES)],
                           tok.dtype)
    torch.manual_seed(s.seed)
    config = GPTConfig(tok.vocab_size, s.block_size, s.n_layer, s.n_head, s.n_embd)
    model = model_from_checkpoint(base) if base else GPT(config)
    if tok.vocab_size > model.config.vocab_size or s.block_size > model.config.block_size:
        raise ValueError(f"{s.init} takes {model.config.vocab_size} tokens and rows of {model.config.block_size}; the "
                         f"sources have {tok.vocab_size} tokens, --block_size is {s.block_size}")
    before = {n: p.detach().clone().to(device) for n, p in model.named_parameters()}
    if job.arm.lora_rank:
        add_lora(model, job.arm.lora_rank)
    model.to(device)
    for name, p in model.named_parameters():
        p.requires_grad_(bool(re.search(job.arm.trained, name)))
    autocast = torch.autocast(device, torch.bfloat16, enabled=s.dtype == "bfloat16")
    forward = wrapped(model, s.compile, job.batch_size // max(s.accumulate, world), s.block_size, autocast)
    optimizers = make_optimizers(model, job, s)
    ema = (ShadowEMA if job.arm.shadow else InLoopEMA)(model, job.arm.ema_alpha, job.arm.ema_every)
    ema = ema if job.arm.ema_alpha else None
    start, rows, tokens = 0, [], dict.fromkeys(mixture.sources, 0)
    losses, n_losses = torch.zeros(2, device=device), 0  # since the last evaluation: sum and maximum, on the device

    ckpt = newest(path)
    if ckpt:
        check_same(path, ckpt, s, job)
        start, rows, tokens, n_losses = ckpt["step"], ckpt["rows"], ckpt["tokens"], ckpt["n_losses"]
        losses.copy_(torch.tensor(ckpt["losses"]))
        model.load_state_dict(ckpt["model"])
        for optimizer, state in zip(optimizers, ckpt["optimizers"]):
            optimizer.load_state_dict(state)
        if ema:
            ema.load_state_dict(ckpt["ema"])

    def measure(step):
        loss = mean_loss(step) if n_losses else None
        if rank:  # the first measures and writes
            return {"step": step}
        row = {"arm": job.name, "seed": s.seed, "data_seed": s.data_seed, "bench_seed": s.bench_seed,
               "settings": settings_hash(s), "step": step, "lr": job.lr * lr_factor(step, job),
               "train_loss": loss, "train_loss_max": losses[1].item() or None,
               **{f"tokens_{k}": n for k, n in tokens.items()}}
        if step == 0 and base and base["benchmark"] == s.benchmark_arguments() and all(
                base["settings"][k] == getattr(s, k) for k in ("source", "validation_blocks", "dtype")):
            # measured when the base ended
            return {**base["rows"][-1], **row, "shift_l2": 0.0, "shift_relative": 0.0}
        whole = merge_lora(copy.deepcopy(model)) if job.arm.lora_rank else model
        with autocast, ema.applied() if job.arm.shadow else contextlib.nullcontext():
            return row | bench.evaluate(whole, benchmark, validation, before, s.validation_blocks,
                                        full=step in (0, job.steps))

    def mean_loss(step):
        mean = losses[0].item() / n_losses
        if not math.isfinite(mean):
            raise ValueError(f"{job.name}: the loss or its gradient became {mean} by step {step}; last good "
                             f"checkpoint: {path if path.exists() else 'none'}. Lower --lr, under another --name")
        return mean

    def save(step):
        if n_losses:
            mean_loss(step)  # refuses to save what is not finite
        if rank:
            return
        save_checkpoint(path, {
            "job": asdict(job), "settings": asdict(s), "config": asdict(model.config), "world": asdict(s.world()),
            "benchmark": s.benchmark_arguments(), "tokenizer": tok.to_json(), "code": code_version(),
            "step": step, "rows": rows, "tokens": tokens, "losses": losses.tolist(), "n_losses": n_losses,
            "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers],
            "ema": ema.state_dict() if ema else None})
        write_lines(path.with_suffix(".jsonl"), rows)

    for step in range(start, job.steps + 1):
        interrupted = False
        if step in job.evaluate_at() and all(row["step"] < step for row in rows):
            try:
                with signals_interrupt():
                    row = measure(step)
            except KeyboardInterrupt:  # the row is measured again when the run goes on
                interrupted = True
            else:
                rows.append(row)
                if rank == 0:
                    write_lines(path.with_suffix(".jsonl"), rows)
                losses.zero_()
                n_losses = 0
        ending = any_rank(interrupted or stopping()) or step == job.steps
        if ending or (step > start and step % s.checkpoint_every == 0):
            save(step)
        if ending:
            return rows

        for group in (g for optimizer in optimizers for g in optimizer.param_groups):
            group["lr"] = group["peak_lr"] * lr_factor(step, job)
        x, y, source = mixture.batch(step, job.batch_size, curriculum.weights(step, job.steps))
        loss = 0.0
        for xs, ys, share, is_last in micro_batches(x, y, s.accumulate, device):
            forward.require_backward_grad_sync = is_last  # of DistributedDataParallel: ranks exchange gradients once
            with autocast:
                part = forward(xs, ys)[1] * share
            part.backward()
            loss += part.detach()
        loss = mean_over_ranks(loss)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), s.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if job.arm.l2:
            pull_back(model, before, job.arm.l2 * job.lr * lr_factor(step, job))
        if ema:
            ema.update(step + 1)

        losses[0] += loss + 0 * norm  # a gradient that is not finite makes the sum NaN, too
        losses[1] = torch.maximum(losses[1], loss)
        n_losses += 1
        for name in source:
            tokens[name] += s.block_size
        if device == "cpu" or (step + 1) % 10 == 0:  # on a GPU, to look at the loss is to wait for it
            tell(step + 1, mean_loss(step + 1))


# of no effect on a number, but for rounding, or compared as a field of the job's arm
NOT_COMPARED = {"name", "preset", "study", "seeds", "only", "weights", "curriculum", "ema_alpha",
                "ema_every", "processes", "checkpoint_every"}
VARIED = {"seed", "data_seed", "bench_seed", "base_curriculum", "target_order", "cognates"}  # within a study


def differences(old, new):
    """'lr 0.005 there, 0.001 here; ...': where two dicts of settings differ in what has an effect; '' if nowhere."""
    old, new = (json.loads(json.dumps(x)) for x in (old, new))
    return "; ".join(f"{k} {old.get(k)!r} there, {new.get(k)!r} here" for k in {**old, **new}
                     if k not in NOT_COMPARED and old.get(k) != new.get(k))


def check_same(path, ckpt, s, job):
    """Raises ValueError if a checkpoint, or what so_far() returns of it, was made by other settings or another job."""
    everything = lambda s, job: s | job | {f"arm's {k}": v for k, v in job["arm"].items()} | {"arm": ""}
    differ = differences(everything(ckpt["settings"], ckpt["job"]), everything(asdict(s), asdict(job)))
    if differ:
        raise ValueError(f"{path} was made by other settings: {differ}: choose another --name")


def settings_hash(s):
    """Eight hex digits of the settings that all runs and arms of a study share; rows that differ in it never mix."""
    kept = {k: v for k, v in asdict(s).items() if k not in NOT_COMPARED | VARIED}
    return f"{zlib.crc32(json.dumps(kept, sort_keys=True).encode()):08x}"


# -------------------------------------------------------------------------------------------------------- processes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory():
    """Has glibc keep the memory that a step frees: to hand it back to the system, and to fault it in again at the next
    step, takes a tenth of a small model's time. Without effect elsewhere."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_THRESHOLD, 2 ** 30) or libc.mallopt(M_MMAP_THRESHOLD, 2 ** 25)  # old ones take no more
            libc.mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)


def set_precision(device):
    """Lets a GPU multiply float32 matrices as TF32."""
    if device == "cuda":
        torch.set_float32_matmul_precision("high")


@contextlib.contextmanager
def stop_on_signal():
    """Within the block, Ctrl-C and SIGTERM only raise a flag; yields the function that reads it."""
    raised = []
    with on_signals(lambda *_: raised.append(True)):
        yield lambda: bool(raised)


def signals_interrupt():
    """Within the block, they raise KeyboardInterrupt at once: for what takes seconds and changes nothing."""
    return on_signals(signal.default_int_handler)


@contextlib.contextmanager
def on_signals(handler):
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    old = {sig: signal.signal(sig, handler) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for sig, was in old.items():
            signal.signal(sig, was)


@dataclass(frozen=True)
class Task:
    """A job and what a process needs to run it: its base in BASES, the sources to prepare (for a base), the checkpoint
    to start from."""
    settings: Settings
    job: Job
    folder: Path
    base: str = ""
    sources: tuple = ()
    start: str = ""

    @property
    def name(self):
        return " ".join([str(self.settings.seed), *[self.base] * bool(self.base), self.job.name])

    def so_far(self):
        """What so_far() returns of its checkpoint, step 0 if it has none. ValueError if that is of other settings."""
        path = self.folder / f"{self.job.name}.pt"
        ckpt = so_far(path)
        if ckpt:
            check_same(path, ckpt, self.settings, self.job)
        return ckpt or {"step": 0, "rows": []}

    def finished(self):
        rows = self.so_far()["rows"]
        return bool(rows and rows[-1]["step"] == self.job.steps) and all(
            (self.folder / "data" / f"{name}_train.bin").exists() for name in self.sources
            if self.settings.corpora().get(name, name) in SOURCES)


def train_task(task, tell=lambda *_: None):
    """Trains one task, as long as no signal comes and the parent process lives."""
    keep_freed_memory()
    set_precision(task.settings.device)
    parent = mp.parent_process()
    with stop_on_signal() as stopped:
        train(task.settings, task.job, task.folder, load_start(task.start) if task.start else None, tell,
              lambda: stopped() or bool(parent and not parent.is_alive()))


def run_task(task, threads, pipe, gpu=0):
    """The body of a child process. Sends (step, loss) into the pipe, at a user's error (-1, the message). Whatever else
    goes wrong leaves its traceback in NAME.log."""
    torch.set_num_threads(threads)
    log = task.folder / f"{task.job.name}.log"

    def tell(*news):
        with contextlib.suppress(OSError):  # the parent process was killed, and this one is about to end
            pipe.send(news)

    try:
        if task.settings.device == "cuda":
            torch.cuda.set_device(gpu)
        with owned(task.folder / f".{task.job.name}.lock", wait=60):  # an orphan of a killed run may be ending
            with signals_interrupt():
                if task.sources:
                    prepare(task.settings, task.folder, task.sources)
            train_task(task, tell)
    except (ValueError, OSError) as e:
        tell(-1, str(e))
        sys.exit(2)
    except KeyboardInterrupt:
        pass
    except BaseException:
        log.write_text(traceback.format_exc())
        raise SystemExit(1) from None


def process_context():
    """How processes are started: where there is a fork server, it imports what they need once."""
    context = mp.get_context("forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["train", "torch._dynamo"])  # the optimizers need the latter
    return context


def processes_at_once(s, cores, gpus):
    """How many processes run side by side where the user does not say: on CPUs one more than cores, so that none idles
    at the end; on GPUs as many as there are cores to feed them, up to 8 on each, whose memory they share."""
    return s.processes or (max(gpus, min(cores, 8 * gpus)) if s.device == "cuda" else cores + 1)


def run_tasks(tasks, title):
    """Runs the tasks that are not finished, several side by side, a process each, under one progress bar. One that
    fails does not stop the others. Returns {name of a failed task: ValueError if a user's mistake, else
    ChildProcessError}; raises KeyboardInterrupt if stopped."""
    done = {task.name: task.so_far()["step"] for task in tasks}
    total, waiting = sum(task.job.steps for task in tasks), [task for task in tasks if not task.finished()]
    if not waiting:
        return {}
    if dist.is_initialized():
        return run_with_ranks(waiting, progress_bar(title, total, sum(done.values())))
    context = process_context()
    children, gpu_of, pipes, unfinished = {}, {}, {}, list(waiting)  # pipes: {what a child's news come from: its name}
    cores, gpus = torch.get_num_threads(), max(1, torch.cuda.device_count())
    at_once = processes_at_once(tasks[0].settings, cores, gpus)
    threads = max(1, cores // min(at_once, len(tasks)))  # not of those waiting: a rerun is to round as the first run
    losses, failed = {}, {}
    bar = progress_bar(title, total, sum(done.values()))
    try:
        while waiting or pipes:
            alive = [name for name, child in children.items() if child.is_alive()]
            if waiting and len(alive) < at_once:
                task = waiting.pop(0)
                gpu_of[task.name] = min(range(gpus), key=[gpu_of[name] for name in alive].count)
                source, sink = context.Pipe(duplex=False)
                children[task.name] = context.Process(
                    target=run_task, args=(task, threads, sink, gpu_of[task.name]), daemon=True)
                children[task.name].start()
                sink.close()  # the child has the other copy; when it ends, however, the source does
                pipes[source] = task.name
                continue
            for source in connection.wait(list(pipes), timeout=0.2):
                name = pipes[source]
                try:
                    step, news = source.recv()
                except (EOFError, OSError):
                    del pipes[source]
                    children[name].join()
                    continue
                if step < 0:
                    failed[name] = ValueError(news)
                else:
                    losses[name], done[name] = news, step
            bar.update(sum(done.values()) - bar.n)
            bar.set_postfix_str("loss " + ", ".join(f"{n} {losses[n]:.2f}" for n, child in children.items()
                                                    if n in losses and child.is_alive()), refresh=False)
    finally:  # also on Ctrl-C, which the children have received, too: they write a checkpoint and end
        for child in children.values():
            child.join(timeout=5)
        for child in children.values():
            if child.is_alive():  # the signal came while it was starting, and was lost
                child.terminate()
            child.join(timeout=30)
        bar.close()
    for task in unfinished:
        code, log = children[task.name].exitcode, task.folder / f"{task.job.name}.log"
        if code and task.name not in failed:
            failed[task.name] = ChildProcessError(f"killed by signal {-code}, perhaps for memory" if code < 0 else
                                                  f"ended with exit code {code}, see {log}")
    if any(task.name not in failed and not task.finished() for task in unfinished):
        raise KeyboardInterrupt
    return failed


def run_with_ranks(tasks, bar):
    """run_tasks under torchrun: one task after the other, all processes together. This is the first; the others are in
    follow()."""
    failed = {}
    with bar:
        for task in tasks:
            if task.sources:
                prepare(task.settings, task.folder, task.sources)
            before = bar.n - task.so_far()["step"]

            def tell(step, loss):
                bar.update(before + step - bar.n)
                bar.set_postfix_str(f"loss {task.name} {loss:.2f}", refresh=False)

            dist.broadcast_object_list([task])
            try:
                train_task(task, tell)
            except ValueError as e:  # on all of them alike
                failed[task.name] = e
            except RuntimeError as e:
                log = task.folder / f"{task.job.name}.log"
                log.write_text(traceback.format_exc())
                raise ChildProcessError(f"{task.name}: a process of this run failed ({str(e).splitlines()[0]}), see "
                                        f"{log}: rerun the same command to go on from the last checkpoint") from None
            if task.name not in failed and not task.finished():
                raise KeyboardInterrupt
    return failed


def follow():
    """What every process of torchrun but the first does: it trains the tasks that the first one sends, None at the end.
    A user's error is the same on all of them, and the first one says it."""
    try:
        while True:
            box = [None]
            dist.broadcast_object_list(box)
            if box[0] is None:
                return
            with contextlib.suppress(ValueError):
                train_task(box[0])
    except RuntimeError as e:
        raise ChildProcessError(f"process {dist.get_rank()}: {str(e).splitlines()[0]}") from None


@contextlib.contextmanager
def torchrun(device):
    """Within the block, under torchrun, its processes are one group; yields whether this is one that follows. device:
    the user's choice, or ''."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield False
        return
    if device != "cpu" and torch.cuda.is_available():
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise ValueError(f"torchrun started a process {local + 1} where there are {gpus} GPUs: give "
                             f"--nproc_per_node={gpus}")
        torch.cuda.set_device(local)
    dist.init_process_group()  # by default gloo for what is on the CPU, and NCCL for what is on GPUs
    yield dist.get_rank() > 0
    if dist.get_rank() == 0:
        dist.broadcast_object_list([None])
    dist.destroy_process_group()


def progress_bar(title, total, initial):
    """A bar for a person; a line every ten seconds where the output is a file."""
    return tqdm(total=total, initial=initial, desc=title, unit="step", mininterval=0.2 if sys.stderr.isatty() else 10,
                dynamic_ncols=True)


def gate(s, rows):
    """Raises ValueError if a base has not learned what the arms could lose."""
    for key, floor, what in (("copain", s.gate_copain, "Copain"), ("label_english", s.gate_label, "English label task"),
                             ("cloze_english", s.gate_cloze, "English cloze task")):
        if rows[-1].get(key, 100) < floor:
            raise ValueError(f"the base of seed {s.seed} reached {rows[-1][key]:.1f}% on {what}, below the gate of "
                             f"{floor:g}%: from there the arms would show nothing. Train it longer (--base_steps) or "
                             "try another --seed")


# -------------------------------------------------------------------------------------------------------- the study
def find_machine(s):
    """Fills in device and dtype where the user left them open, the latter as the run's folder has it, sets torch up,
    and says why. Returns what the record of a run says of the machine."""
    found = "cuda" if torch.cuda.is_available() else "cpu"
    s.device = s.device or found
    if s.device not in ("cpu", "cuda") or (s.device == "cuda" and found == "cpu"):
        raise ValueError(f"device {s.device!r} is not available here; found {found}: leave --device out")
    why = "as given" if s.dtype else "as this run began"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        s.dtype = s.dtype or json.loads(Path("runs", s.name, "settings.json").read_text())["settings"]["dtype"]
    if not s.dtype:
        if s.device == "cuda":
            s.dtype, why = "bfloat16", "the GPU is fast at it"
        else:
            ratio = _matmul_seconds(torch.float32) / _matmul_seconds(torch.bfloat16)
            s.dtype = "bfloat16" if ratio > 1.5 else "float32"
            why = f"this CPU multiplies bfloat16 matrices {ratio:.2g} times as fast as float32"
    if s.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype {s.dtype!r} is not known: float32 or bfloat16")
    set_precision(s.device)
    name = torch.cuda.get_device_name() if s.device == "cuda" else _cpu_name()
    print(f"device {s.device} ({name}), {torch.get_num_threads()} threads; {s.dtype} ({why})")
    return {"processor": name, "cores": os.cpu_count(), "python": platform.python_version(),
            "torch": torch.__version__, "system": platform.system(), "flags": {
                "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
                "float32_matmul_precision": torch.get_float32_matmul_precision(),
                "cudnn_deterministic": torch.backends.cudnn.deterministic}}


def _cpu_name():
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        models = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name} with {torch.backends.cpu.get_cpu_capability()}"


def _matmul_seconds(dtype):
    a, b = torch.ones(512, 128, dtype=dtype), torch.ones(128, 512, dtype=dtype)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return min(times)


def say_plan(s, bases, arms):
    """Prints what will run (both lists of Tasks), and for how long if training alone took the time: from three steps
    measured now."""
    model = (model_from_checkpoint(load_start(s.init)) if s.init else
             GPT(GPTConfig(800, s.block_size, s.n_layer, s.n_head, s.n_embd))).to(s.device)
    rows = max(1, s.batch_size // s.accumulate)
    rows = min(16, rows) if s.device == "cpu" else rows  # there time goes by tokens, on a GPU by launches, too
    x = torch.zeros(rows, s.block_size, dtype=torch.long, device=s.device)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        with torch.autocast(s.device, torch.bfloat16, enabled=s.dtype == "bfloat16"):
            model(x, x)[1].backward()
        model.transformer.wpe.weight.grad.sum().item()
        seconds.append(time.perf_counter() - start)
    n_params, tokens = model.num_params(), x.numel()
    if s.device == "cuda":  # this process keeps no more of its memory than it must
        del model, x
        torch.cuda.empty_cache()
    left = sum((task.job.steps - task.so_far()["step"]) * task.job.batch_size * s.block_size
               for task in [*bases, *arms])
    minutes = left * sorted(seconds)[1] / tokens * 1.2 / 60

    def of(tasks, what):
        job = tasks[0].job if tasks else None
        size = f" of {job.steps} steps, {job.steps * job.batch_size * s.block_size / 1e6:.1f}M tokens" if job else ""
        return f"{len(tasks)} {what}{'s' * (len(tasks) != 1)}{size}"

    print(f"study {s.study}, {s.seeds} run{'s' * (s.seeds > 1)}, {n_params / 1e6:.2f}M parameters: "
          f"{of(bases, 'base')}; {of(arms, 'arm')}; about {math.ceil(minutes)} min")


def given_files(s):
    """The files outside the run's folder that a study rests on: base, manifests of the sources, multiple choice."""
    init = Path(s.init)
    weights = next((file for file in (init / "model.safetensors", init / "pytorch_model.bin") if file.exists()), init)
    return [weights] * bool(s.init) + [Path(where) / "manifest.json" for where in s.corpora().values()
                                       if where not in SOURCES] + [Path(s.task)] * bool(s.task)


def digest(file):
    """The first digits of its SHA-256."""
    return hashlib.sha256(np.memmap(file, mode="r")).hexdigest()[:16]


def open_run(s, run, machine):
    """Makes the run's folder and records settings, machine and commit in it; or checks that it belongs to the same
    settings, and adds this machine and commit if they are others. Returns the record."""
    path = run / "settings.json"
    info = {"settings": json.loads(json.dumps(asdict(s))), "machines": [machine], "commits": [code_version()]}
    info["settings"] |= {f"contents of {file}": digest(file) for file in given_files(s)}
    if path.exists():
        try:
            old = json.loads(path.read_text())
            differ = differences(old["settings"], info["settings"])
            for key in ("machines", "commits"):
                info[key] = old[key] + [x for x in info[key] if x not in old[key]]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} is not the record of a run: choose another --name") from None
        if differ:
            raise ValueError(f"{run} holds a run with other settings: {differ}: choose another --name")
    run.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda p: p.write_text(json.dumps(info, indent=1) + "\n"))
    return info


def write_study(s, out, names, record, left_out):
    """Gathers the rows of a study's arms from the run's folder into out/metrics.jsonl, and what the report needs to
    know about them into out/settings.json. Returns whether there were any."""
    study, path = STUDIES[s.study], out / "settings.json"
    names = list(dict.fromkeys([*study.arms, *names]))
    out.mkdir(exist_ok=True)
    if path.exists():
        s.seeds = max(s.seeds, json.loads(path.read_text())["settings"]["seeds"])
    rows = []
    for name in names:
        for i in range(s.seeds):
            ckpt = so_far(out.parent / f"seed{s.seed + i}" / ARMS[name].base / f"{name}.pt")
            rows += ckpt["rows"] if ckpt else []
    write_lines(out / "metrics.jsonl", rows)
    info = {"study": s.study, "question": study.question, "pairs": study.pairs or [(n, names[0]) for n in names[1:]],
            "arms": {n: asdict(ARMS[n]) for n in names}, "left_out": left_out, **record, "settings": asdict(s)}
    if s.task:  # what guessing gets right of it, percent
        info["label_chance"] = 100 * float(np.mean([1 / len(x.choices) for x in bench.read_choices(s.task, s.shots)]))
    write_atomically(path, lambda p: p.write_text(json.dumps(info, indent=1) + "\n"))
    return bool(rows)


def plan(s):
    """What a study consists of: (names of its arms, Tasks of the bases, of the arms, of the arms that go on from arms).
    Everything that can be refused is refused here, before anything is written."""
    names = s.only.split(",") if s.only not in ("", "base") else STUDIES[s.study].arms
    corpora = check_sources(s)
    if s.init:  # its world, its shape, and with --seeds its problem
        base = load_start(s.init)
        for field in ("seed", "max_integer", "list_lengths", "target_order", "cognates", "vocab_size", "n_layer",
                      "n_head", "n_embd", "block_size") if "settings" in base else ():
            setattr(s, field, base["settings"][field])
        if "settings" not in base:
            if not s.source:
                raise ValueError(f"{s.init} is a GPT-2, for real text: give prepared sources as --source NAME=FOLDER")
            for field in ("vocab_size", "n_layer", "n_head", "n_embd"):
                setattr(s, field, base["config"][field])
        other = [name for name in names if ARMS[name].base]
        if other or s.seeds > 1:
            raise ValueError("--init gives one base for one run, but " + (f"arm {other[0]!r} starts from another" if
                             other else f"--seeds is {s.seeds}") + ": leave one of the two out")
    first = list(dict.fromkeys(ARMS[name].start or name for name in names))  # what others go on from is run, too
    later = [name for name in names if ARMS[name].start]
    steps = {name: arm_job(s, name).steps for name in [*STUDIES[s.study].arms, *names]}
    usual = next(iter(steps.values()))
    for name, n in steps.items():
        if n != usual:
            raise ValueError(f"arm {name!r} runs {n} steps, the arms of study {s.study!r} {usual}: it cannot share "
                             "their report; choose the --study that it belongs to")
    sources = {}  # base: the sources that it and the arms from it draw from
    for base in dict.fromkeys(ARMS[name].base for name in first):
        one = s.run(0, base)
        one.world().languages()
        jobs = [base_job(one), *(arm_job(s, name) for name in first + later if ARMS[name].base == base)]
        for job in jobs:
            Curriculum(job.arm.curriculum).check(job.steps)
        used = [(job.name, x) for job in jobs[bool(s.init):] for x in Curriculum(job.arm.curriculum).shapes]
        for name, x in used:
            if x not in corpora:
                raise ValueError(f"the curriculum of {name!r} names the source {x!r}; there are {', '.join(corpora)}")
        sources[base] = tuple(dict.fromkeys([*(x for x in ("english", "target") if x in corpora),
                                             *(x for _, x in used)]))

    def task(i, base, job, **more):
        return Task(s.run(i, base), job, Path("runs") / s.name / f"seed{s.seed + i}" / base, base, **more)

    def arm(i, name, start):
        one = task(i, ARMS[name].base, arm_job(s, name))
        return dataclasses.replace(one, start=str(s.init if start == "base" and s.init else one.folder / f"{start}.pt"))

    runs = range(s.seeds)
    bases = [task(i, base, base_job(s.run(i, base)), sources=xs) for i in runs for base, xs in sources.items()]
    arms = [arm(i, name, "base") for i in runs for name in first]
    if s.init:
        bases, arms[0] = [], dataclasses.replace(arms[0], sources=sources[""])
    return names, bases, arms, [arm(i, name, ARMS[name].start) for i in runs for name in later]


def check_sources(s):
    """{name: where} of the corpora that there are, with what is wrong about the given ones said before a run starts."""
    for text in s.source:
        name, _, where = text.partition("=")
        if not re.fullmatch(r"\w[\w+-]*", name) or not where:
            raise ValueError(f"--source is {text!r}, expected NAME=FOLDER, as in eu=data/eu")
        if where not in SOURCES:
            load_manifest(where, s.block_size)
    names = [text.partition("=")[0] for text in s.source]
    if len(set(names)) < len(names):
        raise ValueError(f"--source names a source twice: {' '.join(s.source)}")
    if s.task:
        bench.read_choices(s.task, s.shots)
    return s.corpora() or SOURCES


def study(s):
    """Everything that the settings ask for; returns the folder of the study."""
    machine = find_machine(s)
    names, bases, arms, later = plan(s)
    run, clock, left_out = Path("runs") / s.name, time.perf_counter(), {}
    if s.only == "base":
        arms, later = [], []
    with owned(run / ".lock"):
        record = open_run(s, run, machine)
        say_plan(s, bases, arms + later)
        if s.init:
            prepare(arms[0].settings, arms[0].folder, arms[0].sources, load_start(s.init)["tokenizer"])
        failed = run_tasks(bases, f"{len(bases)} base{'s' * (len(bases) > 1)}")
        for task in bases:
            try:
                if task.name not in failed:
                    gate(task.settings, task.so_far()["rows"])
            except ValueError as e:
                left_out[task.folder] = e
                print(f"left out: {e}")
        if len(left_out) == len(bases) > 0:
            raise next(iter(left_out.values()))
        without = {*left_out, *(task.folder for task in bases if task.name in failed)}
        if arms:
            print(f"bases ready after {time.perf_counter() - clock:.0f} s")
            failed |= run_tasks([task for task in arms if task.folder not in without], f"{len(arms)} arms")
            ended = {str(task.folder / f"{task.job.name}.pt") for task in arms if task.finished()}
            failed |= run_tasks([task for task in later if task.start in ended], f"{len(later)} arms after them")
            print(f"arms ready after {time.perf_counter() - clock:.0f} s")
            if write_study(s, run / s.study, names, record, list(map(str, left_out.values()))):
                print(bench.report(run / s.study))
    if failed:
        error = ValueError if all(isinstance(e, ValueError) for e in failed.values()) else ChildProcessError
        raise error("; ".join(f"{name}: {e}" for name, e in failed.items()) + " -- rerun the same command to run what "
                    "is missing")
    return run / s.study


def sample(path, language, prompt, n=3, length=60, seed=0):
    """Prints n documents sampled from a checkpoint; without a prompt, they begin as prose in `language`."""
    ckpt = load_checkpoint(path)
    tok, model = Tokenizer.from_json(ckpt["tokenizer"]), model_from_checkpoint(ckpt)
    world = World(**ckpt["world"])
    if not prompt and not ckpt["settings"]["source"]:  # real text begins at the beginning of a document
        if language not in world.languages():
            raise ValueError(f"language {language!r} is not in this checkpoint: {', '.join(world.languages())}")
        prompt = prose(Random(seed), world, world.languages()[language]).split(".")[0] + "."
    start = torch.tensor([[tok.eot, *tok.encode(prompt)]])
    for ids in model.generate(start.repeat(n, 1), length, temperature=0.8,
                              generator=torch.Generator().manual_seed(seed)).tolist():
        print(tok.decode(ids[1:ids.index(tok.eot, 1) if tok.eot in ids[1:] else None]), "\n")


def parse_flags(argv):
    """(Settings, parsed extra flags) from the command line; one flag per field of Settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = refuse
    for f in dataclasses.fields(Settings):
        if f.type == tuple[str, ...]:
            parser.add_argument(f"--{f.name}", action="append", default=argparse.SUPPRESS, metavar="text",
                                help="may be given several times")
            continue
        kind = (lambda text: tuple(int(x) for x in text.split(","))) if f.type is tuple else f.type
        parser.add_argument(f"--{f.name}", type=kind, default=argparse.SUPPRESS, metavar=f.type.__name__,
                            help=f"default {f.default!r}")
    parser.add_argument("--sample", metavar="CHECKPOINT", help="print documents sampled from a checkpoint, and stop")
    parser.add_argument("--language", default="target", help="of the sampled documents")
    parser.add_argument("--prompt", default="", help="text that the sampled documents begin with")
    dashes = lambda m: m[0].replace("-", "_")  # --base-steps is --base_steps
    flags, unknown = parser.parse_known_args([re.sub(r"(?<=^--)[^=]+", dashes, a) for a in argv])
    if unknown:
        known = [f.name for f in dataclasses.fields(Settings)]
        near = difflib.get_close_matches(unknown[0].lstrip("-").split("=")[0], known, 1, 0)
        raise ValueError(f"unknown argument {unknown[0]!r}; the nearest setting is --{near[0]} (see --help)")
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(flags).items()
             if k in Settings.__dataclass_fields__}
    preset = given.get("preset") or ("gpu" if torch.cuda.is_available() else "laptop")
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}: {', '.join(PRESETS)}")
    of_text = {"gate_copain": 0.0, "max_integer": 99} if "source" in given else {}
    s = Settings(**{"name": preset} | PRESETS[preset] | of_text | given | {"preset": preset})
    # in curricula, the first two sources go by the names that the arms know them by
    role = dict(zip((text.partition("=")[0] for text in s.source), ("target", "english")))
    as_roles = lambda text: re.sub(r"([\w+-]+)=", lambda m: role.get(m[1], m[1]) + "=", text)
    s.base_curriculum = as_roles(s.base_curriculum)
    if s.weights or s.curriculum:
        s.only = s.only or "mine"
        if any(s.only in study.arms for study in STUDIES.values()):
            raise ValueError(f"--only {s.only} is an arm already: give the new one another name")
        if s.weights and s.curriculum:
            raise ValueError("--weights and --curriculum both say what the mixture is: give one")
        curriculum = s.curriculum or re.sub(r"=([^,]*),?", r"=constant(\1) ", s.weights)
        ARMS[s.only] = Arm(as_roles(curriculum), ema_alpha=s.ema_alpha, ema_every=s.ema_every)
    elif s.ema_alpha or s.ema_every != 1:
        raise ValueError("--ema_alpha and --ema_every go with --weights or --curriculum, which make an arm of your own")
    for what, names, known, where in (("study", [s.study], STUDIES, "STUDIES"),
                                      ("arm", s.only.split(",") if s.only not in ("", "base") else [], ARMS, "ARMS")):
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1, 0)[0]
                raise ValueError(f"unknown {what} {name!r}; the nearest is {near!r}, all are in {where} of train.py")
    if not re.fullmatch(r"\w[\w.+-]*", s.name):
        raise ValueError(f"--name is {s.name!r}, expected the name of a folder under runs/: letters, digits, _ . + -")
    lengths = s.list_lengths
    if not lengths or min(lengths) < 3 or max(lengths) > 10:
        raise ValueError(f"--list_lengths is {lengths}, expected numbers from 3 to 10, as in 3,4,5")
    InLoopEMA(torch.nn.Linear(1, 1), s.ema_alpha, s.ema_every)
    at_least = (
        dict.fromkeys(("seed", "data_seed", "bench_seed", "base_warmup", "weight_decay", "processes", "shots"), 0)
        | dict.fromkeys((
            "seeds", "n_layer", "n_head", "n_embd", "block_size", "base_steps", "base_batch_size", "steps",
            "batch_size", "accumulate", "copain_items", "label_items", "cloze_items", "validation_blocks",
            "checkpoint_every"), 1)
        | dict(documents=100, vocab_size=300, max_integer=max(9, 2 * max(lengths))))
    at_most = dict(vocab_size=1 << 16, copain_items=10_000, max_integer=10_000,
                   accumulate=s.batch_size if s.init else min(s.batch_size, s.base_batch_size))
    for name, floor in at_least.items():
        if not floor <= getattr(s, name) <= at_most.get(name, 10 ** 12):
            raise ValueError(f"--{name} is {getattr(s, name)}, expected a number from {floor} to "
                             f"{at_most.get(name, 10 ** 12):,}")
    for name in ("lr", "base_lr", "muon_lr", "grad_clip"):
        if not 0 < getattr(s, name) < math.inf:
            raise ValueError(f"--{name} is {getattr(s, name)}, expected a number above 0")
    for name, top in (("warmup", 1), ("lr_until", 1), ("lr_floor", 1), ("cognates", 0.8)):
        if not 0 <= getattr(s, name) <= top:
            raise ValueError(f"--{name} is {getattr(s, name)}, expected a share from 0 to {top}")
    if s.compile not in ("", *COMPILE_MODES):
        raise ValueError(f"--compile is {s.compile!r}, expected one of {', '.join(COMPILE_MODES)}")
    if s.accumulate > 1 and s.compile in ("reduce-overhead", "max-autotune"):
        raise ValueError(f"--compile {s.compile} uses CUDA graphs, which overwrite the gradients that --accumulate "
                         f"{s.accumulate} adds to: take default or max-autotune-no-cudagraphs")
    GPTConfig(s.vocab_size, s.block_size, s.n_layer, s.n_head, s.n_embd)
    return s, flags


def main(argv=None):
    try:
        s, flags = parse_flags(sys.argv[1:] if argv is None else argv)
        with torchrun(s.device) as follows:
            if flags.sample:
                sample(flags.sample, flags.language, flags.prompt)
            elif follows:
                follow()
            else:
                study(s)
    except (ValueError, OSError) as e:
        refuse(e, code=1 if isinstance(e, ChildProcessError) else 2)
    except KeyboardInterrupt:
        print("\nstopped; to continue: " + ("the same torchrun command" if "TORCHELASTIC_RUN_ID" in os.environ else
                                            f"python train.py {shlex.join(sys.argv[1:])}"), file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
