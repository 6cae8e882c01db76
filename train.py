"""The study: a base model, continued pretraining (CPT) from it under several arms, the benchmark, the report.

    python train.py                                  the whole study, from random weights to the figure
    python train.py --preset smoke                   every stage in a minute; its numbers mean nothing
    python train.py --seeds 5                        five times, base included; means and 95% intervals
    python train.py --only base                      pretraining alone
    python train.py --only ema --init PATH/base.pt   one arm from a given base
    python train.py --sample runs/laptop/seed1337/ema.pt
    python train.py --help                           every setting

Rerunning a command continues what was interrupted. Elhady et al. 2025 is "the paper" below.

Data flow of one seed:  prepare() -> data/*.bin, tokenizer.json;  train(base job) -> base.pt;  one train(arm job) per
arm, side by side -> ARM.pt, ARM.jsonl;  bench.report() -> metrics.jsonl, report.md, summary.json, figure.png.
"""
import argparse
import contextlib
import dataclasses
import difflib
import json
import math
import multiprocessing as mp
import os
import platform
import queue
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import bench
from curriculum import Curriculum
from data import Mixture, Tokenizer, World, train_bpe, write_corpus
from ema import InLoopEMA
from model import GPT, GPTConfig, load_checkpoint, model_from_checkpoint


# --------------------------------------------------------------------------------------------------------- the arms
@dataclass(frozen=True)
class Arm:
    """What one CPT run does differently. alpha 0 means no EMA; the learning rate is Settings.lr * lr_scale."""
    curriculum: str
    ema_alpha: float = 0.0
    ema_every: int = 1
    lr_scale: float = 1.0


ARMS = {  # a new line here is a new arm in the study, the report and the figure
    "target":         Arm("target=rest"),
    "target+english": Arm("target=rest english=constant(0.2)"),
    "curriculum":     Arm("target=rest english=window(0.2, 0, 0.1)"),
    "ema":            Arm("target=rest", ema_alpha=0.92),
    "low-lr":         Arm("target=rest", lr_scale=0.08),  # what `ema` is at every=1, see ema.py
}


# --------------------------------------------------------------------------------------------------------- settings
@dataclass
class Settings:
    """Every number of a study. A preset states what differs from these; a flag overrides both."""
    # the study
    preset: str = ""              # laptop, gpu or smoke; by default gpu where CUDA is found, else laptop
    name: str = ""                # the run's folder under runs/; by default the preset's name
    seed: int = 1337              # the first seed: of the world, the initial weights and the order of the data
    seeds: int = 1                # how many seeds, one after another, base included
    bench_seed: int = 1234        # of the benchmark's items, the same for every seed and arm
    only: str = ""                # 'base', or names of arms separated by commas; by default everything
    init: str = ""                # a base checkpoint to start the arms from, instead of pretraining one
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
    # continued pretraining: AdamW as in the paper
    steps: int = 1400
    batch_size: int = 16
    lr: float = 5e-3              # peak
    warmup: float = 0.01          # share of the steps
    lr_until: float = 0.3         # share of the steps at which the cosine has reached its floor
    lr_floor: float = 0.05        # share of the peak
    weight_decay: float = 0.1     # on matrices only
    grad_clip: float = 1.0
    # evaluation
    copain_items: int = 150       # per task, of which there are seven
    label_items: int = 300
    validation_blocks: int = 128
    # the machine
    device: str = ""              # cpu or cuda; by default cuda where it is found
    dtype: str = ""               # float32 or bfloat16; by default bfloat16 where the hardware is fast at it
    checkpoint_every: int = 250   # steps between checkpoints

    def world(self):
        return World(self.max_integer, tuple(self.list_lengths),
                     (("target", self.seed, self.target_order, self.cognates),))

    def benchmark(self, tok):
        return bench.Benchmark(self.world(), tok, self.copain_items, self.label_items, self.bench_seed)


PRESETS = {
    "laptop": {},
    "gpu": dict(max_integer=99, list_lengths=(3, 4, 5), documents=400_000, n_layer=8, n_head=8, n_embd=384,
                block_size=128, base_steps=8000, base_batch_size=128, steps=4000, batch_size=64, lr=1e-3,
                base_lr=1e-3, base_warmup=200, checkpoint_every=1000),
    "smoke": dict(documents=1500, n_layer=2, n_head=2, n_embd=32, base_steps=40, base_batch_size=8, base_warmup=5,
                  steps=24, batch_size=8, gate_copain=0, gate_label=0, copain_items=10, label_items=20,
                  validation_blocks=8, checkpoint_every=10),
}


@dataclass(frozen=True)
class Job:
    """One run of the loop: the base, or one arm of the CPT."""
    name: str
    curriculum: str
    steps: int
    batch_size: int
    lr: float
    warmup: int
    lr_until: int
    lr_floor: float
    muon_lr: float = 0.0       # 0: AdamW for everything
    ema_alpha: float = 0.0     # 0: no EMA
    ema_every: int = 1

    def evaluate_at(self):
        """Steps to evaluate at, dense at the start as in the paper: 0, 1, 2, 4, 8 ... and then every eighth of the
        run; a base at every fifth."""
        if self.muon_lr:
            return {self.steps * i // 5 for i in range(6)}
        return {2 ** k for k in range(30) if 2 ** k < self.steps / 8} | {self.steps * i // 8 for i in range(9)}


def base_job(s):
    return Job("base", s.base_curriculum, s.base_steps, s.base_batch_size, s.base_lr, s.base_warmup, s.base_steps, 0.0,
               muon_lr=s.muon_lr)


def arm_job(s, name):
    arm = ARMS[name]
    return Job(name, arm.curriculum, s.steps, s.batch_size, s.lr * arm.lr_scale, round(s.warmup * s.steps),
               round(s.lr_until * s.steps), s.lr_floor, ema_alpha=arm.ema_alpha, ema_every=arm.ema_every)


# ------------------------------------------------------------------------------------- learning rate and optimizers
def lr_factor(step, job):
    """Linear warm-up, then half a cosine from 1 to lr_floor at step lr_until, then lr_floor: a share of the peak."""
    if step < job.warmup:
        return (step + 1) / job.warmup
    t = min(1.0, (step - job.warmup) / max(1, job.lr_until - job.warmup))
    return job.lr_floor + (1 - job.lr_floor) * 0.5 * (1 + math.cos(math.pi * t))


def newton_schulz_float32(grad, ns_coefficients, ns_steps, eps):
    """The orthogonalisation inside torch.optim.Muon, in float32 where torch has bfloat16: on a CPU that emulates
    bfloat16 the original takes five times as long as the rest of a step."""
    a, b, c = ns_coefficients
    x = grad.T if grad.size(0) > grad.size(1) else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if grad.size(0) > grad.size(1) else x


def make_optimizers(model, job, s):
    """Muon on the blocks' matrices where the job asks for it, AdamW with decay on matrices only for the rest."""
    params = list(model.named_parameters())
    blocks = [p for n, p in params if p.dim() == 2 and ".h." in n] if job.muon_lr else []
    rest = [p for n, p in params if not any(p is q for q in blocks)]
    groups = [{"params": [p for p in rest if p.dim() >= 2], "weight_decay": s.weight_decay},
              {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0}]
    optimizers = [torch.optim.AdamW(groups, lr=job.lr, betas=(0.9, 0.95), fused=True)]
    if blocks:
        if s.dtype == "float32":
            torch.optim._muon._zeropower_via_newtonschulz = newton_schulz_float32
        optimizers.append(torch.optim.Muon(blocks, lr=job.muon_lr, weight_decay=0.01))
    for group in (g for optimizer in optimizers for g in optimizer.param_groups):
        group["peak_lr"] = group["lr"]
    return optimizers


# ---------------------------------------------------------------------------------------------------- files of a run
def write_atomically(path, write, flush=True):
    """write(temporary path), flushed to disk, then renamed: the old file or the new one is there, never half of it."""
    tmp = path.with_name(path.name + ".tmp")
    write(tmp)
    if flush:
        with open(tmp, "rb+") as f:
            os.fsync(f.fileno())
    os.replace(tmp, path)


def write_lines(path, rows):
    """A log, not flushed to disk: checkpoints hold its rows, too."""
    write_atomically(path, lambda p: p.write_text("".join(json.dumps(row) + "\n" for row in rows)), flush=False)


def prepare(s, folder, tokenizer=None):
    """Writes the corpora of one seed as token files, and the tokenizer (trained on them unless one is given as JSON);
    the tokenizer last, as the sign of completion."""
    if (folder / "tokenizer.json").exists():
        return
    (folder / "data").mkdir(parents=True, exist_ok=True)
    world = s.world()
    languages = world.languages()
    documents = {name: write_corpus(world, lang, s.documents, s.seed) for name, lang in languages.items()}
    tok = (Tokenizer.from_json(tokenizer) if tokenizer else
           Tokenizer(train_bpe([d for docs in documents.values() for d in docs[:5000]], s.vocab_size)))
    sources = {name: tok.encode_documents(docs) for name, docs in documents.items()}
    benchmark = s.benchmark(tok)
    if benchmark.longest > s.block_size:
        raise ValueError(f"the longest benchmark prompt has {benchmark.longest} tokens with its answer, block_size is "
                         f"{s.block_size}: raise --block_size")
    benchmark.check_disjoint(sources)
    for name, lang in languages.items():
        held_out = write_corpus(world, lang, max(200, 4 * s.validation_blocks), s.seed + 10 ** 6)
        for part, ids in (("train", sources[name]), ("val", tok.encode_documents(held_out))):
            write_atomically(folder / "data" / f"{name}_{part}.bin", ids.tofile)
    write_atomically(folder / "tokenizer.json", lambda p: p.write_text(tok.to_json()))


def open_data(folder, part):
    """{source: np.memmap of uint16 token ids}."""
    return {p.stem.removesuffix(f"_{part}"): np.memmap(p, dtype=np.uint16, mode="r")
            for p in sorted((folder / "data").glob(f"*_{part}.bin"))}


# --------------------------------------------------------------------------------------------------------- the loop
def train(s, job, folder, base=None, tell=lambda step, loss: None, stopping=lambda: False):
    """Runs one job to its end, from its checkpoint if it has one; returns the rows of its log.

    base: the checkpoint that CPT starts from; None trains from random weights. tell(step, mean loss since the last
    evaluation) is called now and then; when stopping() turns true, a checkpoint is written and the rows so far return.
    """
    path, device = folder / f"{job.name}.pt", s.device
    tok = Tokenizer.from_json((folder / "tokenizer.json").read_text())
    curriculum = Curriculum(job.curriculum)
    mixture = Mixture(open_data(folder, "train"), s.block_size, seed=2 * s.seed + (base is not None))
    benchmark = s.benchmark(tok)
    validation = open_data(folder, "val")
    torch.manual_seed(s.seed)
    config = GPTConfig(tok.vocab_size, s.block_size, s.n_layer, s.n_head, s.n_embd)
    model = (model_from_checkpoint(base) if base else GPT(config)).to(device)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizers = make_optimizers(model, job, s)
    ema = InLoopEMA(model, job.ema_alpha, job.ema_every) if job.ema_alpha else None
    autocast = torch.autocast(device, torch.bfloat16, enabled=s.dtype == "bfloat16")
    start, rows, tokens = 0, [], dict.fromkeys(mixture.sources, 0)
    loss_sum, n_losses = torch.zeros((), device=device), 0  # since the last evaluation; the sum waits on the device

    if path.exists():
        ckpt = load_checkpoint(path)
        if ckpt["job"] != asdict(job):
            differ = [f"{k} {v!r} there, {asdict(job).get(k)!r} here" for k, v in ckpt["job"].items()
                      if v != asdict(job).get(k)]
            raise ValueError(f"{path} was made by another {job.name}: {'; '.join(differ)}: choose another --name")
        start, rows, tokens, n_losses = ckpt["step"], ckpt["rows"], ckpt["tokens"], ckpt["n_losses"]
        loss_sum.fill_(ckpt["loss_sum"])
        model.load_state_dict(ckpt["model"])
        for optimizer, state in zip(optimizers, ckpt["optimizers"]):
            optimizer.load_state_dict(state)
        if ema:
            ema.load_state_dict(ckpt["ema"])

    def measure(step):
        row = {"arm": job.name, "seed": s.seed, "step": step, "lr": job.lr * lr_factor(step, job),
               "train_loss": mean_loss(step) if n_losses else None, **{f"tokens_{k}": n for k, n in tokens.items()}}
        if base and step == 0:  # the same model and the same benchmark as in the last row of the base
            return {**base["rows"][-1], **row, "shift_l2": 0.0, "shift_relative": 0.0}
        with autocast:
            return row | bench.evaluate(model, benchmark, validation, before, s.validation_blocks, step == job.steps)

    def mean_loss(step):
        mean = loss_sum.item() / n_losses
        if not math.isfinite(mean):
            raise ValueError(f"{job.name}: the loss or its gradient became {mean} by step {step}; last good checkpoint: "
                             f"{path if path.exists() else 'none'}. Lower --lr, under another --name")
        return mean

    def save(step):
        if n_losses:
            mean_loss(step)  # refuses to save what is not finite
        state = {"job": asdict(job), "settings": asdict(s), "config": asdict(config), "world": asdict(s.world()),
                 "benchmark": [s.copain_items, s.label_items, s.bench_seed], "tokenizer": tok.to_json(),
                 "step": step, "rows": rows, "tokens": tokens, "loss_sum": loss_sum.item(), "n_losses": n_losses,
                 "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers],
                 "ema": ema.state_dict() if ema else None}
        write_atomically(path, lambda p: torch.save(state, p))
        write_lines(path.with_suffix(".jsonl"), rows)

    for step in range(start, job.steps + 1):
        if step in job.evaluate_at() and all(row["step"] < step for row in rows):
            rows.append(measure(step))
            write_lines(path.with_suffix(".jsonl"), rows)
            loss_sum.zero_()
            n_losses = 0
        ending = step == job.steps or stopping()
        if ending or (step > start and step % s.checkpoint_every == 0):
            save(step)
        if ending:
            return rows

        for group in (g for optimizer in optimizers for g in optimizer.param_groups):
            group["lr"] = group["peak_lr"] * lr_factor(step, job)
        x, y, source = mixture.batch(step, job.batch_size, curriculum.weights(step, job.steps))
        with autocast:
            _, loss = model(torch.from_numpy(x).to(device), torch.from_numpy(y).to(device))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), s.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if ema:
            ema.update(step + 1)

        loss_sum += loss.detach() + 0 * norm  # a gradient that is not finite makes the sum NaN, too
        n_losses += 1
        for name in source:
            tokens[name] += s.block_size
        if device == "cpu" or (step + 1) % 10 == 0:  # on a GPU, to look at the loss is to wait for it
            tell(step + 1, mean_loss(step + 1))


# -------------------------------------------------------------------------------------------------------- processes
@contextlib.contextmanager
def stop_on_signal():
    """Within the block, Ctrl-C and SIGTERM only raise a flag; yields the function that reads it."""
    raised = []
    old = {sig: signal.signal(sig, lambda *_: raised.append(sig)) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(raised)
    finally:
        for sig, handler in old.items():
            signal.signal(sig, handler)


def arm_process(s, name, folder, base_path, threads, messages):
    """The body of a child process: one arm. Sends (arm, step, loss), at a user's error (arm, -1, the message)."""
    torch.set_num_threads(threads)
    parent = mp.parent_process()
    try:
        with stop_on_signal() as stopped:
            train(s, arm_job(s, name), folder, load_checkpoint(base_path), lambda *news: messages.put((name, *news)),
                  lambda: stopped() or not parent.is_alive())
    except (ValueError, OSError) as e:
        messages.put((name, -1, str(e)))
        sys.exit(2)


def run_arms(s, names, folder, base_path):
    """Runs the arms that are not finished side by side, one process each, under one progress bar.

    Raises ChildProcessError naming the arms that failed, after the others have finished; KeyboardInterrupt if stopped.
    """
    done = {n: load_checkpoint(folder / f"{n}.pt")["step"] if (folder / f"{n}.pt").exists() else 0 for n in names}
    names = [n for n in names if done[n] < s.steps]
    context = mp.get_context("forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["train"])  # torch is imported once, not once an arm
    messages = context.Queue()
    threads = max(1, torch.get_num_threads() // max(1, len(names)))
    children = {n: context.Process(target=arm_process, args=(s, n, folder, base_path, threads, messages), daemon=True)
                for n in names}
    for child in children.values():
        child.start()
    losses, errors = {}, {}
    bar = progress_bar(f"seed {s.seed}, {len(done)} arms", len(done) * s.steps, sum(done.values()))
    try:
        while any(child.is_alive() for child in children.values()) or not messages.empty():
            try:
                name, step, news = messages.get(timeout=0.2)
            except queue.Empty:
                continue
            if step < 0:
                errors[name] = news
                continue
            losses[name], done[name] = news, step
            bar.update(sum(done.values()) - bar.n)
            bar.set_postfix_str("loss " + " ".join(f"{n} {loss:.2f}" for n, loss in losses.items()), refresh=False)
    finally:  # also on Ctrl-C, which the children have received, too: they write a checkpoint and end
        for child in children.values():
            child.join(timeout=30)
        bar.close()
    failed = [f"{n}: {errors.get(n, f'the process ended with exit code {child.exitcode}')}"
              for n, child in children.items() if child.exitcode]
    if failed:
        raise ChildProcessError("arms failed: " + "; ".join(failed) + " -- rerun the same command to continue")
    if any(load_checkpoint(folder / f"{n}.pt")["step"] < s.steps for n in names):
        raise KeyboardInterrupt


def progress_bar(title, total, initial):
    """A bar for a person; a line every ten seconds where the output is a file."""
    return tqdm(total=total, initial=initial, desc=title, unit="step", mininterval=0.2 if sys.stderr.isatty() else 10,
                dynamic_ncols=True)


def pretrain(s, folder):
    """The base of one seed; returns the path of its checkpoint."""
    job, path = base_job(s), folder / "base.pt"
    start = load_checkpoint(path)["step"] if path.exists() else 0
    if start < job.steps:
        bar = progress_bar(f"seed {s.seed}, base", job.steps, start)

        def tell(step, loss):
            bar.update(step - bar.n)
            bar.set_postfix_str(f"loss {loss:.2f}", refresh=False)

        with stop_on_signal() as stopped:
            rows = train(s, job, folder, tell=tell, stopping=stopped)
        bar.close()
        if rows[-1]["step"] < job.steps:
            raise KeyboardInterrupt
    return path


def gate(s, rows):
    """Raises ValueError if a base has not learned what the arms could lose."""
    for key, floor, what in (("copain", s.gate_copain, "Copain"), ("label_english", s.gate_label, "English label task")):
        if rows[-1][key] < floor:
            raise ValueError(f"the base reached {rows[-1][key]:.1f}% on {what}, below the gate of {floor:g}%: from there "
                             "the arms would show nothing. Train it longer (--base_steps) or try another --seed")


# -------------------------------------------------------------------------------------------------------- the study
def find_machine(s):
    """Fills in device and dtype where the user left them open, sets torch up, and says why."""
    found = "cuda" if torch.cuda.is_available() else "cpu"
    s.device = s.device or found
    if s.device not in ("cpu", "cuda") or (s.device == "cuda" and found == "cpu"):
        raise ValueError(f"device {s.device!r} is not available here; found {found}: leave --device out")
    why = "as given"
    if not s.dtype:
        if s.device == "cuda":
            s.dtype, why = "bfloat16", "the GPU is fast at it"
        else:
            ratio = _matmul_seconds(torch.float32) / _matmul_seconds(torch.bfloat16)
            s.dtype = "bfloat16" if ratio > 1.5 else "float32"
            why = f"this CPU multiplies bfloat16 matrices {ratio:.2g} times as fast as float32"
    if s.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype {s.dtype!r} is not known: float32 or bfloat16")
    torch.set_float32_matmul_precision("high")
    name = torch.cuda.get_device_name() if s.device == "cuda" else _cpu_name()
    print(f"device {s.device} ({name}), {torch.get_num_threads()} threads; {s.dtype} ({why})")
    return {"processor": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "python": platform.python_version(), "torch": torch.__version__, "system": platform.system()}


def _cpu_name():
    with contextlib.suppress(OSError):
        for line in open("/proc/cpuinfo"):
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def _matmul_seconds(dtype):
    a, b = torch.ones(512, 128, dtype=dtype), torch.ones(128, 512, dtype=dtype)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return min(times)


def say_plan(s, names):
    """Prints what will run, and for how long if training alone took the time: from three steps measured now."""
    model = GPT(GPTConfig(700, s.block_size, s.n_layer, s.n_head, s.n_embd)).to(s.device)
    x = torch.zeros(s.base_batch_size, s.block_size, dtype=torch.long, device=s.device)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        with torch.autocast(s.device, torch.bfloat16, enabled=s.dtype == "bfloat16"):
            model(x, x)[1].backward()
        model.transformer.wpe.weight.grad.sum().item()
        seconds.append(time.perf_counter() - start)
    base, arms = s.base_steps * s.base_batch_size * s.block_size, s.steps * s.batch_size * s.block_size
    per_token = sorted(seconds)[1] / x.numel()
    minutes = s.seeds * per_token * (base * (not s.init) + len(names) * arms) * 1.3 / 60
    print(f"{s.seeds} seed{'s' * (s.seeds > 1)}: base {s.base_steps} steps ({base / 1e6:.1f}M tokens), "
          f"{len(names)} arms ({', '.join(names)}) of {s.steps} steps ({arms / 1e6:.1f}M tokens each), "
          f"{model.num_params() / 1e6:.2f}M parameters; about {max(1, math.ceil(minutes))} min")


def open_run(s, run, machine):
    """Makes the run's folder and records settings, machine and commit in it; or checks that it belongs to the same
    settings, where the record of its first start stays."""
    path, free = run / "settings.json", {"seeds", "only"}
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, text=True,
                         capture_output=True)
    info = {"machine": machine, "commit": git.stdout.strip() or "unknown", "arms": {n: asdict(a) for n, a in ARMS.items()}}
    if path.exists():
        old = json.loads(path.read_text())
        new = json.loads(json.dumps(asdict(s)))
        differ = [f"{k} {old['settings'].get(k)!r} there, {v!r} here" for k, v in new.items()
                  if old["settings"].get(k) != v and k not in free]
        if differ:
            raise ValueError(f"{run} holds a run with other settings: {'; '.join(differ)}: choose another --name")
        s.seeds = max(s.seeds, old["settings"]["seeds"])
        info |= {"machine": old["machine"], "commit": old["commit"]}
    run.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda p: p.write_text(json.dumps({"settings": asdict(s), **info}, indent=1) + "\n"))


def study(s):
    """Everything that the settings ask for; returns the folder of the run."""
    machine = find_machine(s)
    names = list(ARMS) if s.only in ("", "base") else s.only.split(",")
    base = load_checkpoint(s.init) if s.init else None
    if base:  # its world, its shape, its tokenizer
        for field in ("seed", "max_integer", "list_lengths", "target_order", "cognates", "vocab_size", "n_layer",
                      "n_head", "n_embd", "block_size"):
            setattr(s, field, base["settings"][field])
    for name in names:  # what can be refused is refused before anything is written
        Curriculum(arm_job(s, name).curriculum).check(s.steps)
    say_plan(s, names)
    run = Path("runs") / s.name
    open_run(s, run, machine)
    for seed in range(s.seed, s.seed + s.seeds):
        one, folder, clock = dataclasses.replace(s, seed=seed), run / f"seed{seed}", time.perf_counter()
        prepare(one, folder, base and base["tokenizer"])
        base_path = s.init or pretrain(one, folder)
        gate(one, load_checkpoint(base_path)["rows"])
        if s.only != "base":
            print(f"base ready after {time.perf_counter() - clock:.0f} s")
            run_arms(one, names, folder, base_path)
            print(f"seed {seed} finished after {time.perf_counter() - clock:.0f} s")
            write_lines(run / "metrics.jsonl", [json.loads(line) for p in sorted(run.glob("seed*/*.jsonl"))
                                                if p.stem != "base" for line in p.read_text().splitlines()])
    if s.only != "base":
        print(bench.report(run))
    return run


def sample(path, language, prompt, n=3, length=60, seed=0):
    """Prints n documents sampled from a checkpoint; without a prompt, they begin as prose in `language`."""
    ckpt = load_checkpoint(path)
    tok, model = Tokenizer.from_json(ckpt["tokenizer"]), model_from_checkpoint(ckpt)
    world = World(**ckpt["world"])
    if not prompt:
        if language not in world.languages():
            raise ValueError(f"language {language!r} is not in this checkpoint: {', '.join(world.languages())}")
        prompt = " ".join(write_corpus(dataclasses.replace(world, english_shares=(("prose", 1),), target_shares=(
            ("prose", 1),)), world.languages()[language], 1, seed)[0].split(".")[:1]) + "."
    start = torch.tensor([[tok.eot, *tok.encode(prompt)]])
    for ids in model.generate(start.repeat(n, 1), length, temperature=0.8,
                              generator=torch.Generator().manual_seed(seed)).tolist():
        print(tok.decode(ids[1:ids.index(tok.eot, 1) if tok.eot in ids[1:] else None]), "\n")


def parse_flags(argv):
    """(Settings, parsed extra flags) from the command line; one flag per field of Settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: (_ for _ in ()).throw(ValueError(message))
    for f in dataclasses.fields(Settings):
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
    given = {k: v for k, v in vars(flags).items() if k in Settings.__dataclass_fields__}
    preset = given.get("preset") or ("gpu" if torch.cuda.is_available() else "laptop")
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}: {', '.join(PRESETS)}")
    s = Settings(**{"name": preset} | PRESETS[preset] | given | {"preset": preset})
    if s.only not in ("", "base"):
        for name in s.only.split(","):
            if name not in ARMS:
                near = difflib.get_close_matches(name, ARMS, 1, 0)[0]
                raise ValueError(f"unknown arm {name!r}; the nearest is {near!r}, all are {', '.join(ARMS)}")
    for name in ("seeds", "documents", "n_layer", "n_head", "n_embd", "block_size", "base_steps", "base_batch_size",
                 "steps", "batch_size", "lr", "base_lr", "muon_lr", "grad_clip", "copain_items", "label_items",
                 "validation_blocks", "checkpoint_every", "max_integer"):
        if not getattr(s, name) > 0 or getattr(s, name) == math.inf:
            raise ValueError(f"--{name} is {getattr(s, name)}, expected a number above 0")
    for name in ("warmup", "lr_until", "lr_floor", "cognates"):
        if not 0 <= getattr(s, name) <= 1:
            raise ValueError(f"--{name} is {getattr(s, name)}, expected a share from 0 to 1")
    return s, flags


def main(argv=None):
    try:
        s, flags = parse_flags(sys.argv[1:] if argv is None else argv)
        if flags.sample:
            sample(flags.sample, flags.language, flags.prompt)
        else:
            study(s)
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(1 if isinstance(e, ChildProcessError) else 2)
    except KeyboardInterrupt:
        print(f"\nstopped; to continue: python train.py {' '.join(sys.argv[1:])}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
