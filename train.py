"""Trains base models, continues their pretraining (CPT) in several arms, and draws the report of the study.

    python train.py                                  the study `main`, from random weights to the figure
    python train.py --seeds 5                        five runs, each with its own base; 95% intervals
    python train.py --study averaging --seeds 3      another study of STUDIES; finished arms are not run again
    python train.py --preset smoke                   every stage in a minute; its numbers mean nothing
    python train.py --only base                      pretraining alone
    python train.py --only ema --init PATH/base.pt   one arm from a given base
    python train.py --help                           every setting
    torchrun --nproc_per_node=2 train.py ...         each model on two GPUs (or CPU processes) at once

The same command, given again, continues what was interrupted. Elhady et al. 2025 is "the paper" below.

How it works: prepare(job) writes tokenizer.json and data/*.bin. train(job) reads them and writes NAME.pt, a
checkpoint, and NAME.jsonl, a log. The job `base` comes first; every arm starts from its end. Jobs run side by
side in several processes, see work(). Then write_study() gathers the logs, and bench.report() the report.
"""
import contextlib
import functools
import hashlib
import json
import math
import multiprocessing as mp
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import bench
from results import report
from curriculum import Curriculum
from data import (COPAIN_TASKS, OTHER_RULES, SOURCES, Mixture, Tokenizer, World, load_manifest,
                  load_tokenizer, lock, one_line_parser, parse_object, refuse, require, sha256,
                  train_bpe, write_atomically, write_corpus)
from ema import EMA
from model import (GPT, GPTConfig, add_lora, load_checkpoint, load_gpt2, merge_lora, model_from_checkpoint,
                   newest_checkpoint, save_checkpoint)


# ------------------------------------------------------------------------------------ arms, bases and studies
@dataclass(frozen=True)
class Arm:
    """What one CPT run does differently from plain training. Its peak rate is Settings.lr * lr_scale."""
    curriculum: str           # what it trains on, see curriculum.py
    lr_scale: float = 1.0
    schedule: str = ""        # how the rate falls, one of SCHEDULES
    hold: float = 0.0         # share of the steps, at the start, with rate 0: they only fill Adam's moments
    ema_alpha: float = 0.0    # 0: no EMA
    ema_every: int = 1        # steps between two updates of the EMA
    shadow: bool = False      # the EMA is evaluated and never trained on
    lora_rank: int = 0        # 0: no LoRA
    trained: str = ""         # a regular expression: only parameters in whose names it is found are trained
    l2: float = 0.0           # L2 penalty to the base: every step moves lr * l2 of the way back to it
    base: str = ""            # the base to start from, one of BASES
    start: str = ""           # an arm to start from instead of a base
    steps: int = 0            # 0: Settings.steps

    def check(self, name):
        """Raises ValueError if it has a value that no run can have."""
        good = -1 <= self.ema_alpha <= 1 and min(self.ema_every - 1, self.lora_rank, self.l2, self.steps) >= 0
        require(good and 0 <= self.hold <= 1 and (self.ema_alpha or not self.shadow),
                f"arm {name!r}: expected ema_alpha from -1 to 1 (not 0 with shadow), ema_every from 1, hold "
                f"from 0 to 1, lora_rank, l2 and steps from 0; got {self}")


TARGET = "target=rest"
REPLAY = "target=rest english=constant(0.2)"
MAIN = ("target", "target+english", "curriculum", "ema")
ARMS = {
    "target":         Arm(TARGET),
    "target+english": Arm(REPLAY),
    "curriculum":     Arm("target=rest english=window(0.2, 0, 0.1)"),
    "ema":            Arm(TARGET, ema_alpha=0.92),
    # what is replayed
    "english-prose":    Arm("target=rest english-prose=constant(0.2)"),
    "english-repeats":  Arm("target=rest english-repeats=constant(0.2)"),
    "english-patterns": Arm("target=rest english-patterns=constant(0.2)"),
    "other-rules":      Arm("target=rest other-rules=constant(0.2)"),
    "third-language":   Arm("target=rest third-language=constant(0.2)"),
    "third-patterns":   Arm("target=rest third-patterns=constant(0.2)"),
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
    # averages of the weights, and learning rates without an average
    "low-lr":       Arm(TARGET, lr_scale=0.08),  # at ema_every=1 the same as `ema`, see ema.py
    "ema-0.8":      Arm(TARGET, ema_alpha=0.8),
    "ema-every-10": Arm(TARGET, ema_alpha=0.92, ema_every=10),
    "ema-every-50": Arm(TARGET, ema_alpha=0.92, ema_every=50),
    "shadow-ema":   Arm(TARGET, ema_alpha=0.992, shadow=True),
    "flipped-ema":  Arm(TARGET, ema_alpha=-0.08),  # the sign of the authors' released code
    # the optimizer
    "no-warm-up":     Arm(TARGET, schedule="no-warm-up"),
    "filled-moments": Arm("target=rest english=window(1, 0, 0.04)", hold=0.04),
    "filled+english": Arm("target=rest english=piecewise((0, 1), (0.04, 0.2))", hold=0.04),
    # what may move
    "lora-1":           Arm(TARGET, lora_rank=1, lr_scale=4.0, trained="lora_"),
    "lora-4":           Arm(TARGET, lora_rank=4, lr_scale=4.0, trained="lora_"),
    "lora-16":          Arm(TARGET, lora_rank=16, lr_scale=2.0, trained="lora_"),
    "lora-64":          Arm(TARGET, lora_rank=64, lr_scale=2.0, trained="lora_"),
    "lora-16+wte":      Arm(TARGET, lora_rank=16, trained="lora_|wte"),
    "l2-1":             Arm(TARGET, l2=1.0),
    "l2-10":            Arm(TARGET, l2=10.0),
    "frozen-attention": Arm(TARGET, trained=r"^(?!.*\.attn\.)"),  # all names without .attn. in them
    "frozen-blocks":    Arm(TARGET, trained=r"wte|wpe|ln_f"),
}
SCHEDULES = {  # of the learning rate, see lr_factor(): what differs from Settings. There the rate has mostly
    # fallen by the time the curriculum's English ends
    "":           {},
    "constant":   dict(warmup=0.0, lr_until=0.0, lr_floor=1.0),
    "at-40":      dict(warmup=0.01, lr_until=0.4, lr_floor=0.05),
    "paper":      dict(warmup=0.1, lr_until=1.0, lr_floor=0.033),
    "no-warm-up": dict(warmup=0.0),
}
BASES = {  # the settings that differ; "" is main's base, which has seen 0.7% of a language with 40% cognates
    "":         {},
    "seen-0.1": dict(base_curriculum="english=rest target=constant(0.001)"),
    "seen-0.3": dict(base_curriculum="english=rest target=constant(0.003)"),
    "seen-5":   dict(base_curriculum="english=rest target=constant(0.05)"),
    "seen-20":  dict(base_curriculum="english=rest target=constant(0.2)"),
    "near":     dict(target_order="SVO", cognates=0.5),
    "far":      dict(target_order="SOV", cognates=0.25),
    "none":     dict(target_order="VSO", cognates=0.0),
    "small":    dict(n_embd=96),
    "large":    dict(n_embd=256),
    "adamw":    dict(muon_lr=0.0, base_lr=1e-3, base_steps=9600),  # at any preset
}
for name in MAIN:
    for schedule in ("at-40", "paper"):
        ARMS[f"{name}-{schedule}"] = replace(ARMS[name], schedule=schedule)
    for scale in (0.1, 0.2, 0.5, 2):
        ARMS[f"{name}-lr-{scale}"] = replace(ARMS[name], lr_scale=scale)
    for base in ("small", "large"):
        ARMS[f"{base}-{name}"] = replace(ARMS[name], base=base)
    ARMS[f"{name}-then-english"] = Arm("english=rest", 0.2, "constant", start=name, steps=50)
for base in BASES:      # "seen-5" is target from that base, "seen-5+english" target+english
    if base:
        ARMS[base] = Arm(TARGET, base=base)
        ARMS[f"{base}+english"] = Arm(REPLAY, base=base)
        ARMS[f"{base}-lr-0.1"] = Arm(TARGET, base=base, lr_scale=0.1)
        ARMS[f"{base}+english-lr-0.1"] = Arm(REPLAY, base=base, lr_scale=0.1)


@dataclass(frozen=True)
class Study:
    """A question, the arms that answer it, and what its report shows besides the tables of every study."""
    question: str
    arms: list
    pairs: tuple = ()         # pairs of arms to compare, besides default_pairs()
    judge: tuple = ()         # each {arm of a claim: arm in its place}: the claims are judged on these, too
    judge_best: bool = False  # and on every arm at the rate where its target perplexity is lowest
    figure: str = ""          # x label ("step", "target perplexity": no x needed); "": a row per arm
    x: dict | str = field(default_factory=dict)  # {arm: its place}, or the name of a setting that gives it
    line: tuple = ()          # one line joins these arms; without it, a line joins the arms of a kind

    def check(self, name):
        """Raises ValueError if it names an arm or a setting that does not exist."""
        by_setting = isinstance(self.x, str)
        placed = [] if by_setting else self.x
        for arms in [self.arms, *self.pairs, self.line, placed, *(chosen.values() for chosen in self.judge)]:
            for arm in arms:
                check_name(f"an arm of study {name!r}", arm, ARMS)
        if by_setting:
            check_name(f"x of study {name!r}", self.x, [f.name for f in fields(Settings)])


def default_pairs(arms):
    """Every arm with the one that sees the target language alone, without EMA, and is the same in all else;
    arms that have no such partner, with the first."""
    partner = {}
    for name in arms:
        plain = replace(ARMS[name], curriculum=TARGET, ema_alpha=0.0)
        partner |= {name: other for other in arms if other != name and ARMS[other] == plain}
    for name in arms[1:]:
        if name not in partner.values():
            partner.setdefault(name, arms[0])
    return [(name, partner[name]) for name in arms if name in partner]


def in_place(*names):
    """{arm of main: the arm in its place}, in the order of MAIN."""
    return dict(zip(MAIN, names))


DOSES = {"target": 0, "english-1": 1, "english-5": 5, "target+english": 20, "english-50": 50}
WINDOWS = {"target": 0, "first-5": 5, "curriculum": 10, "first-20": 20, "first-40": 40, "target+english": 100}
STUDIES = {
    "main": Study(
        "Does English in the mixture matter, and do a curriculum or an EMA stand in for it?",
        list(MAIN), pairs=(("target+english", "ema"),), figure="step"),
    "schedule": Study(
        "When does a short English curriculum work: must the rate have fallen when English ends?",
        [name + end for end in ("", "-at-40", "-paper") for name in MAIN],
        judge=tuple(in_place(*(name + end for name in MAIN)) for end in ("", "-at-40", "-paper"))),
    "learning-rate": Study(
        "How much of it does the learning rate decide?",
        [name + end for name in MAIN[:3] for end in ("-lr-0.1", "-lr-0.2", "-lr-0.5", "", "-lr-2")],
        judge_best=True, figure="target perplexity"),
    "optimizer": Study(
        "How much of the early loss is Adam's start at a high rate, and how much the new language?",
        "target target+english english-only no-warm-up filled-moments filled+english".split(),
        pairs=(("filled+english", "filled-moments"),),
        judge=(in_place("target", "target+english"), in_place("filled-moments", "filled+english"))),
    "adamw": Study(
        "Do the findings hold for a base trained by AdamW alone?",
        "target target+english adamw adamw+english".split(),
        judge=(in_place("target", "target+english"), in_place("adamw", "adamw+english"))),
    "replay-content": Study(
        "Is it English, or the few-shot-like documents in it?",
        "target target+english english-prose english-repeats english-patterns other-rules third-language "
        "third-patterns english-only".split()),
    "replay-dose": Study(
        "How much English is enough?", list(DOSES), figure="English, % of the tokens", x=DOSES,
        line=tuple(DOSES)),
    "placement": Study(
        "The same English at another time, and in longer or shorter windows: what does it take?",
        "target target+english curriculum middle last spread first-5 first-20 first-40".split(),
        pairs=(("curriculum", "middle"), ("curriculum", "last"), ("spread", "curriculum")),
        figure="English in the first ... % of the steps\n(right of 10: as much of it, at another time)",
        x=WINDOWS | {"middle": 12, "last": 14.4, "spread": 17.3}, line=tuple(WINDOWS)),
    "averaging": Study(
        "Does an EMA of the weights do anything that a smaller learning rate does not?",
        "target target+english ema low-lr ema-0.8 target-lr-0.2 ema-every-10 ema-every-50 shadow-ema "
        "flipped-ema target-lr-0.5".split(),
        pairs=(("ema", "low-lr"), ("ema-0.8", "target-lr-0.2"), ("ema-every-10", "low-lr"),
               ("ema-every-50", "low-lr"))),
    "constraints": Study(
        "Do weights that may not move far keep the ability, and what does it cost?",
        "target target+english lora-1 lora-4 lora-16 lora-64 lora-16+wte l2-1 l2-10 frozen-attention "
        "frozen-blocks".split(), figure="target perplexity"),
    "languages": Study(
        "Does English matter more, the less of the language the base has seen?",
        [name + end for end in ("", "-lr-0.1") for name in report.C8_ARMS], judge_best=True),
    "distance": Study(
        "Does English matter more, the further the language is from English?",
        "near near+english target target+english far far+english none none+english".split(),
        judge=tuple(in_place(base, f"{base}+english") for base in ("near", "target", "far", "none")),
        figure="share of nouns spelled as in English", x="cognates"),
    "scale": Study(
        "Do the findings hold for smaller and larger models?",
        [size + name for size in ("small-", "", "large-") for name in MAIN],
        judge=tuple(in_place(*(size + name for name in MAIN)) for size in ("small-", "", "large-")),
        figure="channels (n_embd)", x="n_embd"),
    "relearn": Study(
        "After fifty steps of English alone: was in-context learning suppressed or erased?",
        [f"{arm}-then-english" for arm in MAIN]),
}


# --------------------------------------------------------------------------------------------------- settings
def setting(default, meaning, low=0, high=10 ** 12, choices=()):
    """A field of Settings: its default, its line in --help, and the values that it may have."""
    return field(default=default, metadata={"meaning": meaning, "low": low, "high": high, "choices": choices})


COMPILE_MODES = ("", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
ABOVE_ZERO = 1e-12


@dataclass
class Settings:
    """Every number of a study. A preset states what differs from these values, and a flag overrides both."""
    # the study
    preset: str = setting("", "laptop, gpu or smoke; gpu where CUDA is found, else laptop")
    name: str = setting("", "folder of the run under runs/; the name of the preset if not given")
    study: str = setting("main", "which study to run", choices=STUDIES)
    seeds: int = setting(1, "number of runs, base included; run i adds i to the three seeds below", 1)
    seed: int = setting(3000, "seed of the base: world, corpora, initial weights, order of the data")
    data_seed: int = setting(0, "seed of the order of the data in the CPT")
    bench_seed: int = setting(1234, "seed of the benchmark's items")
    only: str = setting("", "'base', or some arms of the study, separated by commas; all arms if not given")
    init: str = setting("", "start the arms from this checkpoint, or from the files of a GPT-2 in a folder")
    # real text in place of the toy languages
    source: list = setting((), "NAME=FOLDER made by `data.py prepare`, once for every source; the first is "
                               "the `target` of the arms, the second their `english`")
    task: str = setting("", "file of multiple choice in the target language; it replaces the label task")
    shots: int = setting(5, "examples before every question of --task")
    leak_check: int = setting(1, "1 stops if a benchmark prompt occurs in the training data; 0 takes "
                                 "the risk that the benchmark measures memory", 0, 1)
    # one arm of your own in place of the study's arms
    curriculum: str = setting("", "mixture of your own arm, see curriculum.py; --only names the arm")
    ema_alpha: float = setting(0.0, "its EMA; 0 is none", -1, 1)
    ema_every: int = setting(1, "steps between two updates of its EMA", 1)
    # the world
    max_integer: int = setting(99, "integers in lists run from 0 to this", 9, 10_000)
    list_lengths: tuple = setting((3,), "lengths of the training lists, as in 3,4,5")
    target_order: str = setting("SOV", "word order of the target language")
    cognates: float = setting(0.4, "share of its nouns that are spelled as in English", 0, 0.8)
    documents: int = setting(40_000, "documents in the corpus of each language", 100)
    vocab_size: int = setting(2048, "most tokens of the vocabulary; the toy world has fewer", 257, 10 ** 6)
    # the model
    n_layer: int = setting(2, "blocks", 1)
    n_head: int = setting(8, "attention heads of a block", 1)
    n_embd: int = setting(128, "channels", 1)
    block_size: int = setting(64, "tokens in a row, the longest context", 1)
    # pretraining of the base: Muon for the matrices of the blocks, AdamW for the rest
    base_steps: int = setting(3200, "steps of the pretraining", 1)
    base_batch_size: int = setting(32, "rows in a batch of the pretraining", 1)
    base_curriculum: str = setting("english=rest target=constant(0.007)", "mixture of the pretraining; real "
                                   "base models have seen a little of every language, too")
    muon_lr: float = setting(0.02, "peak learning rate of Muon; 0 gives its matrices to AdamW")
    base_lr: float = setting(3e-3, "peak learning rate of AdamW in the pretraining", ABOVE_ZERO)
    base_warmup: int = setting(50, "steps of linear warm-up in the pretraining")
    gate_gain: float = setting(25.0, "lowest gain from shots of a base, in points; with less, its run is "
                                     "left out: it has no in-context learning to lose", -100)
    gate_label: float = setting(90.0, "the same for the English label task, in percent")
    gate_cloze: float = setting(90.0, "the same for the English cloze task")
    # continued pretraining with AdamW, as in the paper
    steps: int = setting(1000, "steps of an arm", 1)
    batch_size: int = setting(16, "rows in a batch of an arm", 1)
    lr: float = setting(4e-3, "peak learning rate of an arm", ABOVE_ZERO)
    warmup: float = setting(0.01, "share of the steps for the linear warm-up", 0, 1)
    lr_until: float = setting(0.12, "share of the steps after which the cosine has reached its floor", 0, 1)
    lr_floor: float = setting(0.03, "floor of the learning rate, as a share of the peak", 0, 1)
    weight_decay: float = setting(0.1, "weight decay, on matrices only")
    grad_clip: float = setting(1.0, "largest norm of the gradient", ABOVE_ZERO)
    accumulate: int = setting(1, "parts that a batch is cut into where it does not fit into memory", 1)
    # evaluation
    copain_items: int = setting(150, "Copain items for each of its seven rules", 1, 10_000)
    label_items: int = setting(300, "items of the label task", 1)
    cloze_items: int = setting(200, "items of the cloze task", 1)
    validation_blocks: int = setting(128, "blocks of validation text for a perplexity", 1)
    # the machine
    device: str = setting("", "cpu or cuda; cuda where it is found", choices=("", "cpu", "cuda"))
    dtype: str = setting("", "float32 or bfloat16; bfloat16 where the hardware has instructions for it",
                         choices=("", "float32", "bfloat16"))
    processes: int = setting(0, "models trained at once; 0 lets the number of cores or GPUs decide")
    compile: str = setting("", "mode of torch.compile; not used if not given", choices=COMPILE_MODES)
    checkpoint_every: int = setting(250, "steps between two checkpoints", 1)

    def check(self):
        """Raises ValueError with the flag, its value and the values that it may have."""
        for f in fields(self):
            value, allowed = getattr(self, f.name), f.metadata
            low, high = allowed["low"], allowed["high"]
            if f.type in (int, float) and not low <= value <= high:  # NaN fails this, too
                least = "above 0" if low == ABOVE_ZERO else f"from {low}"
                raise ValueError(f"--{f.name} is {value}, expected a number {least} to {high:,}")
            if allowed["choices"]:
                check_name(f"--{f.name}", value, allowed["choices"])
        most = min(10, self.max_integer // 2)  # the odd-one-out rules draw from half of the integers
        require(self.list_lengths and 3 <= min(self.list_lengths) and max(self.list_lengths) <= most,
                f"--list_lengths is {self.list_lengths}, expected numbers from 3 to {most}, as in 3,4,5; "
                "a larger --max_integer allows more")
        rows = self.batch_size if self.init else math.gcd(self.batch_size, self.base_batch_size)
        require(rows % self.accumulate == 0, f"--accumulate is {self.accumulate}, expected a divisor of "
                                             "--batch_size and --base_batch_size")
        require(self.accumulate == 1 or self.compile not in ("reduce-overhead", "max-autotune"),
                f"--compile {self.compile} uses CUDA graphs, which overwrite the gradients that --accumulate "
                "adds up: take default or max-autotune-no-cudagraphs")
        require(re.fullmatch(r"\w[\w.+-]*", self.name), f"--name is {self.name!r}, expected the name of a "
                                                        "folder under runs/: letters, digits, _ . + -")
        for text in self.source:
            require(re.fullmatch(r"\w[\w+-]*=.+", text),
                    f"--source is {text!r}, expected NAME=FOLDER, as in eu=data/eu")
        names = [text.split("=")[0] for text in self.source]
        require(len(set(names)) == len(names), f"--source names a source twice: {' '.join(self.source)}")
        require("target" not in names[1:] and "english" not in [*names[:1], *names[2:]],
                f"--source is {' '.join(self.source)}: the first is the `target` of the arms and the second "
                "their `english`, so these names can have no other place")
        GPTConfig(self.vocab_size, self.block_size, self.n_layer, self.n_head, self.n_embd)

    def world(self):
        targets = (("target", self.seed, self.target_order, self.cognates), ("third", self.seed, "VSO", 0.0))
        return World(self.max_integer, tuple(self.list_lengths), targets)

    def corpora(self):
        """{name in the curricula: folder of a prepared source, or name of a toy corpus}."""
        if not self.source:
            return {name: name for name in SOURCES}
        pairs = [text.split("=", 1) for text in self.source]
        roles = ["target", "english", *(name for name, _ in pairs[2:])]
        return {role: where for role, (_, where) in zip(roles, pairs)}

    def prepared(self):
        """{name in the curricula: folder} of the sources that `data.py prepare` has made."""
        return {name: Path(where) for name, where in self.corpora().items()
                if where not in SOURCES or (Path(where) / "manifest.json").exists()}

    def validation_sources(self):
        return [name for name in ("english", "target") if name in self.corpora()]

    def benchmark_arguments(self):
        n_label, n_cloze = (0, 0) if self.source else (self.label_items, self.cloze_items)
        return [self.copain_items, n_label, n_cloze, self.bench_seed, self.task, self.shots, self.block_size]

    def run(self, i, base="", schedule=""):
        """The settings of run i of a study, with a line of BASES and one of SCHEDULES."""
        check_name("the base of an arm", base, BASES)
        check_name("the schedule of an arm", schedule, SCHEDULES)
        return replace(self, seed=self.seed + i, data_seed=self.data_seed + i, bench_seed=self.bench_seed + i,
                       **BASES[base] | SCHEDULES[schedule])


PRESETS = {
    "laptop": {},
    "gpu": dict(list_lengths=(3, 4, 5), documents=400_000, n_layer=8, n_head=8, n_embd=384,
                block_size=128, base_steps=8000, base_batch_size=128, steps=4000, batch_size=64, lr=1e-3,
                base_lr=1e-3, base_warmup=200, checkpoint_every=1000),
    "smoke": dict(documents=1500, n_layer=2, n_head=2, n_embd=32, base_steps=40, base_batch_size=8,
                  base_warmup=5, steps=24, batch_size=8, gate_gain=-100, gate_label=0, gate_cloze=0,
                  copain_items=10, label_items=20, cloze_items=20, validation_blocks=8, checkpoint_every=10),
}


def check_name(what, name, names):
    """Raises ValueError with the nearest valid name if `name` is none of `names`."""
    if name not in names:
        close = get_close_matches(name, names, n=5, cutoff=0)
        raise ValueError(f"{what} is {name!r}; the nearest of {len(names)} are {', '.join(map(repr, close))}")


# ------------------------------------------------------------------------------------------------------- jobs
@dataclass(frozen=True)
class Job:
    """One run of the loop: a base, or an arm from the end of another job or from a given checkpoint."""
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
    hold: int = 0              # steps at rate 0, before the warm-up
    needs: "Job" = None        # the job whose end it starts from
    start: str = ""            # the checkpoint or GPT-2 that it starts from; '' is random weights

    @property
    def path(self):
        return self.folder / f"{self.name}.pt"

    @property
    def log(self):
        """The file for the error that ended it. What it measures goes to NAME.jsonl."""
        return self.folder / f"{self.name}.log"

    @property
    def title(self):
        return f"{self.settings.seed} {self.arm.base} {self.name}".replace("  ", " ")

    def check(self):
        """Raises ValueError if its settings or its arm ask for what cannot be run."""
        self.arm.check(self.name)
        self.settings.check()
        self.settings.world().languages()  # refuses an impossible word order
        curriculum, corpora = Curriculum(self.arm.curriculum), self.settings.corpora()
        curriculum.check(self.steps)
        for name in curriculum.shapes:
            require(name in corpora, f"the curriculum of {self.name!r} names the source {name!r}; there are "
                                     f"{', '.join(corpora)}")

    def evaluate_at(self):
        """Steps to evaluate at: 0, 1, 2, 5, 10, 20, 50 ... and the last, dense at the start as in the paper.
        A base is evaluated in the middle and at the end of its run."""
        if not self.start:  # a base: it starts from random weights
            return {self.steps // 2, self.steps}
        dense = {digit * 10 ** k for digit in (1, 2, 5) for k in range(12)}
        return {step for step in dense if step < self.steps} | {0, self.steps}

    def so_far(self):
        """{step, rows, settings, job} of its checkpoint; step 0 and no rows if it has none."""
        written = self.path.stat().st_mtime_ns if self.path.exists() else 0
        return read_once(self.path.absolute(), written)

    def finished(self):
        rows = self.so_far()["rows"]
        return bool(rows) and rows[-1]["step"] == self.steps

    def obstacle(self):
        """Why it cannot be run to its end: its own error, or that of what it needs; '' if none is known."""
        if self.log.exists() and not self.finished():
            with lock(self.path.with_suffix(".lock")) as free:  # otherwise a process is at work on it
                if free and self.log.exists():
                    return (self.log.read_text().strip() or "it ended without a word").splitlines()[-1]
        if self.needs:
            return self.needs.obstacle() or (gate(self.needs) if self.needs.finished() else "")
        return ""


@functools.cache
def read_once(path, written):
    """{step, rows, settings, job} of the newest checkpoint at path; read again when the file has changed."""
    ckpt = newest_checkpoint(path)
    if ckpt is None:
        return {"step": 0, "rows": []}
    return {key: ckpt[key] for key in ("step", "rows", "settings", "job")}


def make_job(study, i, name, base=""):
    """The job of run i with that name: 'base', from BASES[base], or one of ARMS. study: its Settings."""
    arm = Arm("", base=base) if name == "base" else ARMS[name]
    base = arm.base or base
    s = study.run(i, base, arm.schedule)
    folder = Path("runs") / s.name / f"seed{s.seed}" / base
    if name == "base":
        return Job(s, name, replace(arm, curriculum=s.base_curriculum), folder, s.base_steps,
                   s.base_batch_size, s.base_lr, warmup=s.base_warmup, lr_until=s.base_steps, lr_floor=0.0)
    needs, start, steps = None, s.init, arm.steps or s.steps
    if arm.start or not s.init:
        needs = make_job(study, i, arm.start or "base", base)
        start = str(needs.path)
    hold = round(arm.hold * steps)  # the whole schedule comes so much later
    return Job(s, name, arm, folder, steps, s.batch_size, s.lr * arm.lr_scale,
               warmup=round(s.warmup * steps), lr_until=hold + round(s.lr_until * steps), lr_floor=s.lr_floor,
               hold=hold, needs=needs, start=start)


def gate(job):
    """Why a finished base is left out: it has not learned what the arms could lose. '' if it has, or if the
    job is an arm that another one goes on from."""
    if job.name != "base":
        return ""
    s, row = job.settings, job.so_far()["rows"][-1]
    floors = {"gain": s.gate_gain, "label_english": s.gate_label, "cloze_english": s.gate_cloze}
    for key, floor in floors.items():
        if row.get(key, 100) < floor:
            which = f"the {job.arm.base} base of seed {s.seed}".replace("  ", " ")
            return (f"{which} reached {row[key]:.1f} on {key}, its gate is {floor:g}: its arms would have "
                    "nothing to lose. Give it more --base_steps or try another --seed")
    return ""


# ------------------------------------------------------------------------------- learning rate and optimizers
def lr_factor(step, job):
    """The share of the peak rate: 0 for `hold` steps, a linear warm-up, half a cosine until step lr_until,
    then lr_floor."""
    if step < job.hold:
        return 0.0
    first = job.hold + job.warmup
    if step < first:
        return (step - job.hold + 1) / job.warmup
    t = min(1.0, (step - first) / max(1, job.lr_until - first))
    return job.lr_floor + (1 - job.lr_floor) * 0.5 * (1 + math.cos(math.pi * t))


class StackedMuon(torch.optim.Muon):
    """torch.optim.Muon (Jordan 2024) for small matrices: those of one shape are made orthogonal together, in
    the dtype of the run. Torch takes them one by one, in bfloat16, which is slow where a CPU emulates it."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params, grads = group["params"], [p.grad for p in group["params"]]
            for p in params:
                if p not in self.state:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            averages = [self.state[p]["momentum_buffer"] for p in params]
            torch._foreach_lerp_(averages, grads, 1 - group["momentum"])
            updates = torch._foreach_lerp(grads, averages, group["momentum"])         # Nesterov's momentum
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            for shape in dict.fromkeys(p.shape for p in params):
                same = [i for i, p in enumerate(params) if p.shape == shape]
                stack = torch.stack([updates[i] for i in same]).to(group["dtype"])    # (n, rows, columns)
                stack = orthogonal(stack, group["ns_coefficients"], group["ns_steps"], group["eps"])
                scale = group["lr"] * math.sqrt(max(1, shape[0] / shape[1]))          # as torch scales it
                updated = [params[i] for i in same]
                torch._foreach_add_(updated, stack.to(updated[0].dtype).unbind(), alpha=-scale)


def orthogonal(x, coefficients, steps, eps):
    """About U V^T of every matrix U S V^T in x (n, rows, columns). The Newton-Schulz polynomial
    (a + b x x^T + c (x x^T)^2) x brings the singular values close to 1."""
    a, b, c = coefficients
    if x.size(1) > x.size(2):
        return orthogonal(x.mT, coefficients, steps, eps).mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT                                                               # (n, rows, rows)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def make_optimizers(model, job):
    """AdamW as in the paper, with weight decay on matrices only; for a base, Muon on the blocks' matrices."""
    s, of_muon, matrices, others = job.settings, [], [], []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if p.dim() < 2:
            others.append(p)
        elif ".h." in name and s.muon_lr and not job.start:
            of_muon.append(p)
        else:
            matrices.append(p)
    groups = [{"params": matrices, "peak_lr": job.lr, "weight_decay": s.weight_decay},
              {"params": others, "peak_lr": job.lr, "weight_decay": 0.0}]
    optimizers = [torch.optim.AdamW(groups, lr=job.lr, betas=(0.9, 0.95), fused=True)]
    if of_muon:
        group = {"params": of_muon, "peak_lr": s.muon_lr, "dtype": getattr(torch, s.dtype)}
        optimizers.append(StackedMuon([group], lr=s.muon_lr, weight_decay=0.01))
    return optimizers


@torch.no_grad()
def pull_back(model, before, share):
    """Moves the weights a share of the way back to `before` ({name: tensor}). This is the L2 penalty
    0.5 |theta - theta_base|^2, decoupled from Adam as AdamW's weight decay is."""
    names, params = zip(*model.named_parameters())
    torch._foreach_lerp_(params, [before[name] for name in names], share)


# ----------------------------------------------------------------------------------------------- the one loop
def rank_and_world():
    """(which process this is, how many there are) of those that train one model together under torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def open_data(job, part, sources, dtype):
    """{source: np.memmap of token ids} of the part 'train' or 'val'."""
    prepared, files = job.settings.prepared(), {}
    for name in sources:
        in_run = job.folder / "data" / f"{name}_{part}.bin"
        files[name] = prepared[name] / f"{part}.bin" if name in prepared else in_run
    return {name: np.memmap(file, dtype=dtype, mode="r") for name, file in files.items()}


def load_start(path):
    """What a job starts from, as a checkpoint: one of ours, or a GPT-2 from the folder of its files."""
    if not Path(path).is_dir():
        return load_checkpoint(path)
    model = load_gpt2(path)
    return {"config": asdict(model.config), "model": model.state_dict(), "job": {"arm": asdict(Arm(""))}}


def make_model(job, tok):
    """(the model before training, {name: its weights before LoRA is added})."""
    s = job.settings
    torch.manual_seed(s.seed)
    if job.start:
        model = model_from_checkpoint(load_start(job.start))
    else:
        model = GPT(GPTConfig(tok.vocab_size, s.block_size, s.n_layer, s.n_head, s.n_embd))
    room = model.config
    require(tok.vocab_size <= room.vocab_size and s.block_size <= room.block_size,
            f"{job.start} takes {room.vocab_size} tokens and rows of {room.block_size}; the sources have "
            f"{tok.vocab_size} tokens, and --block_size is {s.block_size}")
    before = {name: p.detach().clone().to(s.device) for name, p in model.named_parameters()}
    if job.arm.lora_rank:
        add_lora(model, job.arm.lora_rank)
    for name, p in model.named_parameters():
        p.requires_grad_(bool(re.search(job.arm.trained, name)))
    require(any(p.requires_grad for p in model.parameters()),
            f"{job.name}: no parameter has a name in which {job.arm.trained!r} is found")
    return model.to(s.device), before


def mean_loss(job, step, losses):
    """The mean training loss since the last evaluation, or None. Raises ValueError if it is not finite."""
    total, _, number = losses.tolist()
    if not math.isfinite(total):
        kept = job.path if job.path.exists() else "none"
        rates = "--lr" if job.start else "--muon_lr and --base_lr"
        raise ValueError(f"{job.name}: the loss or its gradient became {total} by step {step}; last good "
                         f"checkpoint: {kept}. Lower {rates}, under another --name")
    return total / number if number else None


def measure(job, step, tokens, losses, model, ema, benchmark, validation, before):
    """A row of the log: the state of the training, and the metrics of the model with LoRA merged, or of the
    average of a shadow EMA. Under torchrun the first process alone evaluates."""
    s = job.settings
    row = {"arm": job.name, "seed": s.seed, "data_seed": s.data_seed, "bench_seed": s.bench_seed,
           "step": step, "lr": job.lr * lr_factor(step, job),
           "train_loss": mean_loss(job, step, losses), "train_loss_max": losses[1].item() or None}
    row |= {f"tokens_{name}": n for name, n in tokens.items()}
    if step == 0 and job.needs:  # this model was measured when the job before it ended
        end = job.needs.so_far()["rows"][-1]
        end = {key: value for key, value in end.items() if not key.startswith("tokens_")}
        return end | row | dict.fromkeys([key for key in end if key.startswith("shift")], 0.0)
    if rank_and_world()[0] == 0:
        with ema.applied() if job.arm.shadow else contextlib.nullcontext():
            whole = merge_lora(model) if job.arm.lora_rank else model
            row |= bench.evaluate(whole, benchmark, validation, before, s.validation_blocks,
                                  full=step in (0, job.steps))
    return row


def train(job, tell=lambda step, loss: None, stopping=lambda: False):
    """Trains one job to its end, from its checkpoint if it has one, and returns the rows of its log.

    tell(step, mean loss) is called now and then. Once stopping() is true, it writes a checkpoint and returns
    the rows so far. Under torchrun all processes call this together; the first one measures and writes.
    """
    s, (rank, world) = job.settings, rank_and_world()
    require(job.batch_size % (world * s.accumulate) == 0, f"a batch of {job.batch_size} rows cannot be cut "
            f"into --accumulate {s.accumulate} equal parts on each of {world} processes")

    # data
    tok = Tokenizer.from_json((job.folder / "tokenizer.json").read_text())
    curriculum = Curriculum(job.arm.curriculum)
    data_seed = 2 * s.data_seed + 1 if job.start else 2 * s.seed  # an arm's is odd, a base's even
    mixture = Mixture(open_data(job, "train", curriculum.shapes, tok.dtype), s.block_size, data_seed)
    validation = open_data(job, "val", s.validation_sources(), tok.dtype)
    benchmark = bench.Benchmark(s.world(), tok, *s.benchmark_arguments())
    longest = benchmark.longest()
    require(longest <= s.block_size, f"the longest benchmark prompt has {longest} tokens with its answer, "
                                     f"but --block_size is {s.block_size}: raise it")
    if s.leak_check:
        benchmark.check_disjoint(mixture.sources, lists=not s.source)

    # model
    model, before = make_model(job, tok)
    autocast = torch.autocast(s.device, torch.bfloat16, enabled=s.dtype == "bfloat16")
    forward = model
    if s.compile:
        torch._dynamo.reset()  # it keeps the compiled models of the jobs before, and gives up after eight
        forward = torch.compile(model, mode=s.compile)
    forward = DistributedDataParallel(forward) if world > 1 else forward
    optimizers = make_optimizers(model, job)
    ema = EMA(model, job.arm.ema_alpha, job.arm.ema_every, job.arm.shadow) if job.arm.ema_alpha else None

    # where it stopped
    start, rows, tokens = 0, [], dict.fromkeys(mixture.sources, 0)
    losses = torch.zeros(3, device=s.device)  # since the last evaluation: sum, maximum, number
    ckpt = newest_checkpoint(job.path)
    if ckpt:
        check_same(job, ckpt)
        start, rows, tokens = ckpt["step"], ckpt["rows"], ckpt["tokens"]
        losses.copy_(torch.tensor(ckpt["losses"]))
        model.load_state_dict(ckpt["model"])
        for optimizer, state in zip(optimizers, ckpt["optimizers"]):
            optimizer.load_state_dict(state)
        if ema:
            ema.load_state_dict(ckpt["ema"])

    for step in range(start, job.steps + 1):
        # evaluate and save
        if step in job.evaluate_at() and not (rows and rows[-1]["step"] == step):
            with autocast:
                rows.append(measure(job, step, tokens, losses, model, ema, benchmark, validation, before))
            if rank == 0:
                write_lines(job.path.with_suffix(".jsonl"), rows)
            losses.zero_()
        ends = step == job.steps or stopping()
        if ends or (step > start and step % s.checkpoint_every == 0):
            mean_loss(job, step, losses)  # refuses to save what is not finite
            if rank == 0:
                save_checkpoint(job.path, {
                    "job": {"name": job.name, "arm": asdict(job.arm)}, "settings": asdict(s),
                    "world": asdict(s.world()), "benchmark": s.benchmark_arguments(), "code": code_version(),
                    "config": asdict(model.config), "tokenizer": tok.to_json(), "model": model.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "ema": ema.state_dict() if ema else None,
                    "step": step, "rows": rows, "tokens": tokens, "losses": losses.tolist()})
        if ends:
            return rows

        # one step
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * lr_factor(step, job)
        x, y, names = mixture.batch(step, job.batch_size, curriculum.weights(step, job.steps))
        xy = torch.from_numpy(np.stack((x, y))[:, rank::world])                           # (2, B / world, T)
        if s.device == "cuda":
            xy = xy.pin_memory().to("cuda", non_blocking=True)
        loss = torch.zeros((), device=s.device)
        for i, (xs, ys) in enumerate(xy.chunk(s.accumulate, dim=1), 1):
            forward.require_backward_grad_sync = i == s.accumulate  # for DDP: exchange gradients once a step
            with autocast:
                part = forward(xs, ys)[1] / s.accumulate
            part.backward()
            loss += part.detach()
        if world > 1:
            dist.all_reduce(loss)
            loss /= world
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), s.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if job.arm.l2:
            pull_back(model, before, job.arm.l2 * job.lr * lr_factor(step, job))
        if ema:
            ema.update(step + 1)
        losses[0] += loss + 0 * norm  # NaN, too, if a gradient is not finite
        losses[1] = torch.maximum(losses[1], loss)
        losses[2] += 1
        for name in names:
            tokens[name] += s.block_size
        if s.device == "cpu" or (step + 1) % 10 == 0:  # on a GPU, to look at the loss is to wait for it
            tell(step + 1, mean_loss(job, step + 1, losses))


# ----------------------------------------------------------------------------------------- the files of a run
# Not compared: what changes a job's result by rounding at most, and what is compared as its arm.
NOT_COMPARED = {"name", "preset", "study", "seeds", "only", "curriculum", "ema_alpha", "ema_every",
                "processes", "checkpoint_every", "leak_check", "gate_gain", "gate_label", "gate_cloze"}


def write_lines(path, rows):
    """Writes a log. It is not flushed to the disk, since the checkpoint holds its rows, too."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(path, lambda p: p.write_text(text), flush=False)


def refuse_differences(what, old, new):
    """Raises ValueError if two dicts of settings differ in one that matters, and names every such setting."""
    old, new = json.loads(json.dumps(old)), json.loads(json.dumps(new))
    differ = [f"{key} {old.get(key)!r} there, {new.get(key)!r} here" for key in {**old, **new}
              if key not in NOT_COMPARED and old.get(key) != new.get(key)]
    another = "another name for the arm" if all("arm's" in text for text in differ) else "another --name"
    require(not differ, f"{what} was made with other settings: {'; '.join(differ)}: choose {another}")


def check_same(job, ckpt):
    """Raises ValueError if the checkpoint of a job was made by other settings, or another arm of its name. A
    field that the old code lacked counts as its default."""
    def flat(settings, arm):
        arm = asdict(Arm("")) | arm
        return asdict(Settings()) | settings | {f"arm's {key}": value for key, value in arm.items()}

    old, new = flat(ckpt["settings"], ckpt["job"]["arm"]), flat(asdict(job.settings), asdict(job.arm))
    refuse_differences(job.path, old, new)


@functools.cache
def code_version():
    """The commit of this code. If it was changed since, or there is no git: also a hash of its files."""
    command = "git describe --always --dirty"  # for the shell: where there is no git, it says nothing
    git = subprocess.run(command, shell=True, cwd=Path(__file__).parent, text=True, capture_output=True)
    commit = git.stdout.strip() or "unknown"
    if commit == "unknown" or commit.endswith("-dirty"):
        content = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
        commit += f"-{hashlib.sha256(content).hexdigest()[:8]}"
    return commit


def processor(s):
    """The name of the GPU, or of the CPU with the vector instructions that torch found."""
    if s.device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    name = models[0] if models else platform.processor() or platform.machine()
    return f"{name} with {torch.backends.cpu.get_cpu_capability()}"


def open_run(s, run):
    """Records settings, machine, commit, and what the files contain that lie outside the run's folder. Raises
    ValueError if the folder holds checkpoints of other settings. If it holds none, it is begun anew."""
    settings, path = json.loads(json.dumps(asdict(s))), run / "settings.json"
    files = [s.init, s.task, *(f"{folder}/manifest.json" for folder in s.prepared().values())]
    for file in filter(None, files):
        for part in sorted(Path(file).glob("*model*")) if Path(file).is_dir() else [file]:
            settings[f"contents of {part}"] = hashlib.sha256(np.memmap(part, mode="r")).hexdigest()[:16]
    made_of = {}
    if not s.source:
        made_of = {f"corpus {name}": str(source) for name, source in SOURCES.items()}
        made_of["rules"] = f"{COPAIN_TASKS}, {OTHER_RULES}"
    settings |= made_of
    machine = {"processor": processor(s), "cores": os.cpu_count(), "python": platform.python_version(),
               "torch": torch.__version__, "system": platform.system(),
               "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
               "float32_matmul_precision": torch.get_float32_matmul_precision(),
               "cudnn_deterministic": torch.backends.cudnn.deterministic}
    record = {"settings": settings, "machines": [machine], "commits": [code_version()]}
    if path.exists():
        old = parse_object(path.read_bytes(), f"{path} is not the record of a run, choose another --name")
        whole = all(isinstance(old.get(key), type(value)) for key, value in record.items())
        require(whole, f"{path} is not the record of a run: choose another --name")
        if any(file.suffix in (".pt", ".damaged") for file in run.rglob("*")):
            # what an old record lacks counts as today's corpora and as the defaults of settings
            refuse_differences(run, made_of | asdict(Settings()) | old["settings"], settings)
            for key in ("machines", "commits"):
                record[key] = old[key] + [x for x in record[key] if x not in old[key]]
            if record["commits"] != old["commits"]:
                print(f"note: {run} was begun with other code, {', '.join(old['commits'])}. If this code "
                      "gives other results, choose another --name")
        elif old["settings"] != settings:
            for folder in run.glob("seed*"):
                shutil.rmtree(folder)
    write_atomically(path, lambda p: p.write_text(json.dumps(record, indent=1) + "\n"))
    return record


def shared_tokenizer(s):
    """The tokenizer, as JSON, of the given base and the prepared sources, '' if there are none. Raises
    ValueError if they differ."""
    texts = {str(folder): (folder / "tokenizer.json").read_text() for folder in s.prepared().values()}
    if s.init and Path(s.init).is_file():
        texts[s.init] = load_checkpoint(s.init)["tokenizer"]
    elif s.init and (Path(s.init) / "merges.txt").exists():
        texts[s.init] = load_tokenizer(s.init).to_json()
    first = next(iter(texts), "")
    for where, text in texts.items():
        require(text == texts[first], f"{where} and {first} have different tokenizers: prepare the sources "
                                      "again with the same --tokenizer FOLDER")
    return texts.get(first, "")


def prepare(job):
    """Writes what the job reads and no other job has written: the tokenizer and the toy corpora's tokens."""
    s, world, corpora = job.settings, job.settings.world(), job.settings.corpora()
    path, data = job.folder / "tokenizer.json", job.folder / "data"
    made = data / "made_for.txt"
    content = f"{world}, {s.seed}, {s.documents}, {s.vocab_size}, {s.validation_blocks}"
    data.mkdir(parents=True, exist_ok=True)
    with lock(data / ".lock", wait=True):
        if made.exists() and made.read_text() != content:  # of a base whose line in BASES was another
            for file in [path, *data.glob("*.bin"), made]:  # the note last
                file.unlink(missing_ok=True)
        if not made.exists():
            write_atomically(made, lambda p: p.write_text(content))
        if not path.exists():
            text = shared_tokenizer(s)
            if not text:
                names = ("english", "target", "third-language")
                corpus = [write_corpus(world, name, min(4000, s.documents), s.seed) for name in names]
                text = Tokenizer(train_bpe(sum(corpus, []), s.vocab_size)).to_json()
            write_atomically(path, lambda p: p.write_text(text))
        tok = Tokenizer.from_json(path.read_text())
        wanted = [(name, "train", s.documents, s.seed) for name in Curriculum(job.arm.curriculum).shapes]
        for name in s.validation_sources():
            wanted.append((name, "val", max(200, 4 * s.validation_blocks), s.seed + 10 ** 6))
        prepared = s.prepared()
        for name, part, n, seed in wanted:
            file = data / f"{name}_{part}.bin"
            if name not in prepared and not file.exists():
                ids = tok.encode_documents(write_corpus(world, corpora[name], n, seed))
                write_atomically(file, ids.tofile)


# ------------------------------------------------------------------------------------------ jobs side by side
def work(jobs, steps, losses, workers, cores, gpu):
    """The body of a process: it takes the next job that is free, trains it, and goes on until none is left.

    A job belongs to the process that holds its lock file. The operating system drops the lock when that
    process ends, for whatever reason. While the job runs, its .log already holds the error to report if the
    process is killed. steps[i] and losses[i] are those of job i, for the progress bar; the loss is 0 while
    nobody trains the job.
    """
    signals, parent = [], mp.parent_process()
    signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    set_up_torch(jobs[0].settings, gpu)

    def stopping():
        return signals or not parent.is_alive()

    def tell(i, step, loss):
        steps[i], losses[i] = step, loss

    while not stopping():
        left = [i for i, job in enumerate(jobs) if not (job.finished() or job.obstacle())]
        if not left:
            return
        for i in left:
            job = jobs[i]
            if job.obstacle() or (job.needs and not job.needs.finished()):
                continue
            with lock(job.path.with_suffix(".lock")) as mine:
                if mine and not (job.finished() or job.log.exists() or stopping()):
                    beside = sum(bool(other.needs) == bool(job.needs) for other in jobs)
                    torch.set_num_threads(max(1, cores // min(workers, beside)))  # the same at every rerun
                    job.log.write_text("its process was killed, perhaps for memory")
                    try:
                        prepare(job)
                        train(job, functools.partial(tell, i), stopping)
                        job.log.unlink(missing_ok=True)
                    except (ValueError, OSError) as e:  # one line, which the user can act on
                        job.log.write_text(str(e))
                    except Exception:
                        job.log.write_text(traceback.format_exc())
                    losses[i] = 0
        time.sleep(0.2)


def processes_at_once(s, n_jobs, cores, gpus):
    """How many processes train side by side. On CPUs: one per core, plus one if the jobs do not divide evenly
    by the cores. On GPUs: one per core, but at most 8 per GPU, because they share its memory."""
    if s.device == "cuda":
        return s.processes or max(gpus, min(cores, 8 * gpus))
    return s.processes or (cores if n_jobs % cores == 0 else cores + 1)


def work_together(s, jobs):
    """Runs work() in several processes, with a progress bar. At Ctrl-C each writes a checkpoint first."""
    if all(job.finished() for job in jobs):
        return
    cores, gpus = torch.get_num_threads(), max(1, torch.cuda.device_count())
    n_arms = sum(bool(job.needs) for job in jobs)
    workers = min(processes_at_once(s, n_arms or len(jobs), cores, gpus), len(jobs))
    # glibc keeps the memory that a step frees, and need not ask the system for it again at the next step
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    context = mp.get_context("spawn")
    steps = context.RawArray("d", [job.so_far()["step"] for job in jobs])
    losses, processes = context.RawArray("d", len(jobs)), []
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C shall reach this process alone
    try:
        for i in range(workers):
            process = context.Process(target=work, args=(jobs, steps, losses, workers, cores, i % gpus))
            process.start()
            processes.append(process)
        signal.signal(signal.SIGINT, handler)
        show_progress(jobs, steps, losses, processes)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # ignore Ctrl-C until the checkpoints are written
        for process in processes:
            process.terminate()  # to work(), SIGTERM means: write a checkpoint and end
        for process in processes:
            process.join()
        signal.signal(signal.SIGINT, handler)


def show_progress(jobs, steps, losses, processes):
    """Shows one bar until all processes have ended: the time left, and the jobs at work with step and loss.
    It counts rows of data: a step of a base has more. Into a file it writes a line every half minute."""
    rows = [job.batch_size for job in jobs]
    with tqdm(total=sum(job.steps * job.batch_size for job in jobs), initial=int(np.dot(steps, rows)),
              desc=f"study {jobs[0].settings.study}", dynamic_ncols=True,
              smoothing=0.05, mininterval=0.2 if sys.stderr.isatty() else 30,
              bar_format="{desc} {percentage:3.0f}% |{bar:20}| {elapsed}, left {remaining}{postfix}") as bar:
        while at_work := [process.sentinel for process in processes if process.is_alive()]:
            wait(at_work, timeout=0.2)  # or until one of them ends
            texts = [f"{job.title} {step:.0f}/{job.steps} loss {loss:.2f}"
                     for job, step, loss in zip(jobs, steps, losses) if loss]
            bar.set_postfix_str("; ".join(texts), refresh=False)
            bar.update(int(np.dot(steps, rows)) - bar.n)


def train_with_ranks(jobs):
    """Under torchrun: one job after the other, all processes together. The first error ends the run."""
    rank, _ = rank_and_world()
    for job in jobs:
        if rank == 0:
            prepare(job)
        dist.barrier()  # the first process has written its files
        if not (job.finished() or job.obstacle()):
            with tqdm(total=job.steps, initial=job.so_far()["step"], desc=job.title, disable=rank > 0) as bar:
                train(job, lambda step, loss: bar.update(step - bar.n))


# -------------------------------------------------------------------------------------------------- the study
def set_up_torch(s, gpu=0):
    if s.device == "cuda":
        torch.cuda.set_device(gpu)
        torch.set_float32_matmul_precision("high")  # float32 matrices are multiplied as TF32


def find_machine(s):
    """Fills in device and dtype where the user left them open, and says which."""
    found = "cuda" if torch.cuda.is_available() else "cpu"
    require(s.device in ("", "cpu", found), "--device is cuda, but no GPU is found: leave --device out")
    s.device = s.device or found
    has = getattr(torch.cpu, "get_capabilities", dict)()
    fast = has.get("avx512_bf16") or has.get("amx_tile")
    if s.device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    s.dtype = s.dtype or ("bfloat16" if fast else "float32")
    if rank_and_world()[0] == 0:
        has = "has" if fast else "has no"
        print(f"{s.dtype}, {torch.get_num_threads()} threads: {processor(s)} {has} instructions for bfloat16")


def arm_names(s):
    """The arms that a command asks for. Those of --only may be of another study."""
    names = STUDIES[s.study].arms if s.only in ("", "base") else s.only.split(",")
    for name in names:
        check_name("--only", name, ARMS)
    return names


def plan(s):
    """The jobs of a study, each after the one that it needs. Everything that can be refused is refused here,
    before anything is written."""
    study, jobs = STUDIES[s.study], {}
    study.check(s.study)
    names = arm_names(s)
    for folder in s.prepared().values():
        load_manifest(folder, s.block_size)
    shared_tokenizer(s)
    if s.task:
        bench.read_choices(s.task, s.shots)
    if s.init:
        require(s.seeds == 1, f"--init gives one base for one run, but --seeds is {s.seeds}: leave one out")
        require(s.only != "base", "--init gives the base, so there is none to train: leave --only base out")
        others = [name for name in names if ARMS[name].base]
        require(not others, f"--init gives one base, but {others} start from other bases: leave one out")
    for i in range(s.seeds):
        for name in names:
            job = make_job(s, i, name)
            while job:  # what it starts from belongs to the plan, too
                jobs[job.path] = job
                job = job.needs
    widths = [BASES["small"]["n_embd"], s.n_embd, BASES["large"]["n_embd"]]
    require(s.study != "scale" or s.preset == "smoke" or widths == sorted(set(widths)), "--study scale: the "
            f"widths of small, default and large are {widths}, which do not rise: change BASES or --n_embd")
    of_toy = [name for name in names if {"target_order", "cognates"} & BASES[ARMS[name].base].keys()]
    require(not (of_toy and s.source), f"{of_toy} are of other toy languages, but --source gives real text: "
                                       "drop them or --source")
    for job in jobs.values():
        job.check()
    reported = [make_job(s, i, name) for i in range(s.seeds) for name in [*study.arms, *names]]
    for job in [*jobs.values(), *reported]:
        if job.so_far()["rows"]:
            check_same(job, job.so_far())
    lengths = {job.steps for job in reported}
    require(len(lengths) == 1, f"{', '.join(names)} run for another number of steps than study {s.study!r}, "
                               "and cannot share a report: choose the --study that they belong to")
    jobs = sorted(jobs.values(), key=lambda job: (job.name != "base", bool(job.arm.start), job.settings.seed))
    return [job for job in jobs if job.name == "base"] if s.only == "base" else jobs


def write_study(s, record, left_out):
    """Gathers the rows of a study's arms into metrics.jsonl of its folder, and what the report has to know
    about them into settings.json. Returns the folder."""
    study, folder, rows = STUDIES[s.study], Path("runs") / s.name / s.study, []
    path, names = folder / "settings.json", list(dict.fromkeys([*study.arms, *arm_names(s)]))
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a rerun keeps the runs from before
        old = json.loads(path.read_text())
        s.seeds = max(s.seeds, old["settings"]["seeds"])
        left_out = list(dict.fromkeys([*old["left_out"], *left_out]))
    for name in names:
        for i in range(s.seeds):
            job = make_job(s, i, name)
            if job.so_far()["rows"]:
                check_same(job, job.so_far())  # rows of different settings are never averaged
                rows += job.so_far()["rows"]
    folder.mkdir(exist_ok=True)
    write_lines(folder / "metrics.jsonl", rows)
    info = {"study": s.study, **asdict(study), "pairs": [*default_pairs(names), *study.pairs],
            "left_out": left_out, "arms": {name: asdict(ARMS[name]) for name in names}, "bases": BASES,
            **record, "settings": asdict(s), "sha256": sha256(folder / "metrics.jsonl")}
    if isinstance(study.x, str):
        info["x"] = {name: getattr(make_job(s, 0, name).settings, study.x) for name in names}
    if s.task:  # percent right by guessing
        items = bench.read_choices(s.task, s.shots)
        info["label_chance"] = 100 * float(np.mean([1 / len(item.choices) for item in items]))
    write_atomically(path, lambda p: p.write_text(json.dumps(info, indent=1) + "\n"))
    return folder


def finish(s, jobs, record):
    """The end of a study: its log and its report. Then an error names what went wrong, if anything did."""
    bases = [job for job in jobs if job.name == "base" and job.finished()]
    left_out, failed = [why for why in map(gate, bases) if why], []
    for job in jobs:
        blocked = job.needs and (job.needs.obstacle() or not job.needs.finished())
        if not (job.finished() or blocked):
            error = job.obstacle() or "was not run"
            if error not in left_out:
                failed.append(f"{job.title}: {error}" + (f", see {job.log}" if job.log.exists() else ""))
    for why in left_out:
        print(f"left out: {why}")
    if s.only != "base":
        folder = write_study(s, record, left_out)
        try:
            print(report.report(folder))
            if s.name == s.preset and not (s.source or s.init):
                names = [*STUDIES, *STUDIES]  # after the last study comes the first
                more = names[names.index(s.study) + 1] if s.seeds > 1 else f"{s.study} --seeds 5"
                print(f"try next: python train.py --preset {s.preset} --study {more}")
        except ValueError as e:
            if not failed and not left_out:
                raise
            print(f"no report yet: {e}")
    if failed:
        raise ChildProcessError("; ".join(failed) + " -- fix that; the same command then runs the rest")
    require(not bases or len(left_out) < len(bases), "; ".join(left_out))


def study(s):
    """Everything that the settings ask for: plan, training, report."""
    find_machine(s)
    set_up_torch(s, int(os.environ.get("LOCAL_RANK", 0)))
    jobs, run = plan(s), Path("runs") / s.name
    if rank_and_world()[0] > 0:
        return train_with_ranks(jobs)
    run.mkdir(parents=True, exist_ok=True)
    with lock(run / ".lock") as mine:
        require(mine, f"{run} is in use by another process: wait for it, or choose another --name")
        record = open_run(s, run)
        for job in jobs:
            job.folder.mkdir(parents=True, exist_ok=True)
            job.log.unlink(missing_ok=True)
        print(f"study {s.study}, {s.seeds} x {', '.join(dict.fromkeys(job.name for job in jobs))}")
        if dist.is_initialized():
            train_with_ranks(jobs)
        else:
            work_together(s, jobs)
        finish(s, jobs, record)


# ----------------------------------------------------------------------------------------------- command line
def numbers(text):
    return tuple(int(x) for x in text.split(","))


def parse_flags(argv):
    """Settings from the command line: one flag for every field, with its meaning and its default."""
    parser = one_line_parser(description=__doc__)
    for f in fields(Settings):
        kind = {"type": f.type, "metavar": f.type.__name__}
        if f.type is tuple:
            kind = {"type": numbers, "metavar": "int,int"}
        elif f.type is list:
            kind = {"action": "append", "metavar": "str"}
        words = f"{f.metadata['meaning']} (default {f.default!r})".replace("%", "%%")
        parser.add_argument(f"--{f.name}", help=words, **kind)
    argv = [re.sub(r"(?<=^--)[^=]+", lambda name: name[0].replace("-", "_"), text) for text in argv]
    given, unknown = parser.parse_known_args(argv)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in vars(given).items()}
    for text in unknown:
        check_name("the argument", text.split("=")[0], [f"--{f.name}" for f in fields(Settings)])
    has_gpu = torch.cuda.is_available() and given.get("device") != "cpu"
    preset = given.get("preset") or ("gpu" if has_gpu else "laptop")
    check_name("--preset", preset, PRESETS)
    of_text = {"gate_gain": -100.0} if given.get("source") else {}
    s = Settings(**{"name": preset} | PRESETS[preset] | of_text | given | {"preset": preset})
    if s.init:
        take_from_base(s, given)
    s.check()
    if s.curriculum:
        s.only = s.only or "mine"
        require(not any(s.only in study.arms for study in STUDIES.values()),
                f"--only {s.only} is an arm already: give your own arm another name")
        require(re.fullmatch(r"\w[\w.+-]*", s.only) and s.only != "base",
                f"--only is {s.only!r}, expected one name for your own arm: letters, digits, _ . + -")
        ARMS[s.only] = Arm(s.curriculum, ema_alpha=s.ema_alpha, ema_every=s.ema_every)
    require(s.curriculum or (s.ema_alpha == 0 and s.ema_every == 1),
            "--ema_alpha and --ema_every go with --curriculum, which makes an arm of your own")
    return s


def take_from_base(s, given):
    """With --init, world and shape are those of the base. Raises ValueError if a flag says otherwise."""
    base, of_model = load_start(s.init), {f.name for f in fields(Settings)} - {"block_size"}
    values = {key: value for key, value in base["config"].items() if key in of_model}
    if "settings" in base:
        of_world = ("seed", "max_integer", "list_lengths", "target_order", "cognates", "block_size",
                    "vocab_size")
        values |= {key: base["settings"][key] for key in of_world}
        require(s.source or not base["settings"]["source"],
                f"{s.init} is a base for real text: give its sources, --source NAME=FOLDER")
    else:
        require(s.source, f"{s.init} is a GPT-2, for real text: give prepared sources, --source NAME=FOLDER")
    for key, value in values.items():
        require(given.get(key, value) == value, f"--{key} is {given.get(key)!r}, but the base {s.init} has "
                                                f"{value!r}: leave --{key} out, or give another base")
        setattr(s, key, value)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        s = parse_flags(argv)
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun started this process
            dist.init_process_group()            # gloo for what is on the CPU, NCCL for what is on GPUs
        study(s)
        if dist.is_initialized():
            dist.destroy_process_group()
    except (ValueError, OSError, MemoryError) as e:
        code = 1 if isinstance(e, ChildProcessError) else 2
        if rank_and_world()[0] > 0 and isinstance(e, ValueError):
            sys.exit(code)  # the first process says it
        refuse(e, code)
    except RuntimeError as e:
        if not dist.is_initialized():
            raise
        refuse(f"a process of this run failed ({str(e).splitlines()[0]}): rerun the same command to go on "
               "from the last checkpoint", code=1)
    except KeyboardInterrupt:
        print(f"\nstopped; to continue: python train.py {shlex.join(argv)}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
