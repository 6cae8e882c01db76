"""How long a step of train.train() takes, and each of its parts. On a GPU if there is one.

    python tests/speed.py                        the laptop study: a step of an arm, and of a base
    python tests/speed.py --big                  GPT-2's 124M, in bfloat16
    python tests/speed.py --nanogpt ../nanoGPT   nanoGPT's model.py in the same loop, in turn with ours
    python tests/speed.py --compile default      through torch.compile
    python tests/speed.py --dtype bfloat16       or float32

A study gives each of its processes one core: OMP_NUM_THREADS=1 python tests/speed.py times that.
"""
import argparse
import importlib.util
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402


def nanogpt_model(folder, sizes, device):
    """nanoGPT's GPT and its optimizer, from the model.py in a folder."""
    spec = importlib.util.spec_from_file_location("nanogpt", Path(folder, "model.py"))
    theirs = sys.modules["nanogpt"] = importlib.util.module_from_spec(spec)  # its dataclass looks there
    spec.loader.exec_module(theirs)
    model = theirs.GPT(theirs.GPTConfig(**sizes, dropout=0.0, bias=True)).to(device)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), device)
    for group in optimizer.param_groups:
        group["peak_lr"] = 1e-3
    return model, {"adamw": optimizer}


def step_times(s, name, folder=""):
    """{part of a step: median ms} of a job of these Settings, and "MB": the most memory used. Each part is waited
    for. The first half of the steps, in which a process gets its memory, does not count."""
    times, clock = [{}], [time.perf_counter()]  # times: for every step {part: seconds}

    def mark(part):  # all since the last mark was this part
        if s.device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        times[-1][part] = times[-1].get(part, 0) + now - clock[0]
        clock[0] = now

    def watch(owner, function, part, before="the rest"):
        def watched(*args, **kwargs):
            mark(before)
            if part == "data":
                times.append({})
            found = call(*args, **kwargs)
            mark(part)
            return found

        call = getattr(owner, function)
        setattr(owner, function, watched)

    sizes = {key: getattr(s, key) for key in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")}
    train.set_up_torch(s)
    torch.manual_seed(0)
    model = GPT(GPTConfig(**sizes)).to(s.device)
    if folder:
        model, optimizers = nanogpt_model(folder, sizes, s.device)
        train.make_optimizers = lambda model, job: optimizers
    base = {key: p.detach().clone() for key, p in model.named_parameters()}
    train.make_model = lambda job, tok: (model, base)
    train.save = lambda *args: None
    train.Job.evaluate_at = lambda job: () if folder or s.n_layer > 2 else (1, 2)
    watch(train, "measure", "evaluation")
    watch(train.Mixture, "batch", "data")
    watch(torch.Tensor, "backward", "backward", before="forward")
    watch(torch.nn.utils, "clip_grad_norm_", "clip")
    watch(torch.optim.AdamW, "step", "AdamW")
    watch(train.Muon, "step", "Muon")
    watch(train.EMA, "update", "EMA")
    with tempfile.TemporaryDirectory() as tmp:
        os.chdir(tmp)
        job = train.make_job(s, 0, name)
        train.prepare(job)
        train.train(job)
    half = times[len(times) // 2:]
    found = {part: 1000 * float(np.median([step[part] for step in half])) for part in half[-1]}
    found["step"] = sum(found.values())
    for step in times:  # the last evaluation counts: the first one also encodes the items
        if "evaluation" in step:
            found["evaluation"] = 1000 * step["evaluation"]
    found["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    if s.device == "cuda":
        found["peak MB"] = torch.cuda.max_memory_allocated() / 1e6
    return found


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--big", action="store_true")
    for name in ("nanogpt", "compile", "dtype"):
        parser.add_argument(f"--{name}", default="")
    flags = parser.parse_args()
    device, cases = "cuda" if torch.cuda.is_available() else "cpu", {"toy, an arm": "ema", "toy, a base": "base"}
    s = train.Settings(name="x", documents=500, vocab_size=880, steps=60, base_steps=60, device=device,
                       dtype=flags.dtype or "float32", compile=flags.compile)
    if flags.big:
        cases, on_gpu = {"124M": "ema"}, device == "cuda"
        s = replace(s, vocab_size=50304, block_size=1024, n_layer=12, n_head=12, n_embd=768,
                    batch_size=16 if on_gpu else 1, steps=60 if on_gpu else 6, dtype=flags.dtype or "bfloat16")
    print(f"{train.machine(device)}, {torch.get_num_threads()} threads, {s.dtype}, torch.compile "
          f"{s.compile or 'off'}, commit {train.code_version()}", flush=True)
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 30),  # as train.py
                   "TQDM_DISABLE": "1"}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # a new process each time
        for title, name in cases.items():
            rows, ms = train.make_job(s, 0, name).batch_size, pool.apply(step_times, (s, name))
            speed = 1000 * rows * s.block_size / ms["step"]
            print(f"{title}, {rows} x {s.block_size}: {speed:,.0f} tokens/s; ms:",
                  ", ".join(f"{part} {x:,.1f}" for part, x in ms.items()), flush=True)
        for _ in range(5 if flags.nanogpt else 0):  # in turn: a machine's speed drifts
            ours, theirs = (pool.apply(step_times, (s, "ema", folder))["step"] for folder in ("", flags.nanogpt))
            print(f"an arm: {ours:.1f} ms a step, with nanoGPT's model {theirs:.1f}", flush=True)


if __name__ == "__main__":
    main()
