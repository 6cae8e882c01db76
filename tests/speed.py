"""How long a step of train.train() takes, and each of its parts. On a GPU if there is one.

    python tests/speed.py                        the laptop study: a step of an arm, and of a base
    python tests/speed.py --big                  GPT-2's 124M, in bfloat16
    python tests/speed.py --nanogpt ../nanoGPT   nanoGPT's model.py in the same loop, in turn with ours
    python tests/speed.py --compile default --dtype bfloat16
"""
import argparse
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402


def nanogpt_model(folder, sizes, device):
    spec = importlib.util.spec_from_file_location("nanogpt", Path(folder, "model.py"))
    theirs = sys.modules["nanogpt"] = importlib.util.module_from_spec(spec)  # its dataclass looks there
    spec.loader.exec_module(theirs)
    model = theirs.GPT(theirs.GPTConfig(**sizes, dropout=0.0, bias=True)).to(device)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), device)
    for group in optimizer.param_groups:
        group["peak_lr"] = 1e-3
    return model, {"adamw": optimizer}


def step_times(s, name, folder=""):
    """{part of a step: median ms} of a job with these Settings, each part waited for. The first half of the
    steps does not count: in it a process gets its memory. folder: nanoGPT's, to train its model."""
    steps, clock = [{}], [time.perf_counter()]  # steps: {part: ms} of each

    def mark(part):  # what happened since the last mark
        if s.device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        steps[-1][part] = steps[-1].get(part, 0) + 1000 * (now - clock[0])
        clock[0] = now

    def watch(owner, name, part, before="the rest"):
        def watched(*args, **kwargs):
            mark(before)
            if part == "data":
                steps.append({})
            found = call(*args, **kwargs)
            mark(part)
            return found
        call = getattr(owner, name)
        setattr(owner, name, watched)

    train.set_up_torch(s)
    sizes = {key: getattr(s, key) for key in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")}
    model = GPT(GPTConfig(**sizes, activation="gelu")).to(s.device)
    if folder:
        model, optimizers = nanogpt_model(folder, sizes, s.device)
        train.make_optimizers = lambda model, job: optimizers
    base = {key: p.detach().clone() for key, p in model.named_parameters()}
    train.make_model = lambda job, tok: (model, base)
    train.save = train.write_json_lines = lambda *args: None
    train.progress_bar = lambda *args: train.tqdm(disable=True)
    train.Job.evaluate_at = lambda job: () if folder or s.n_layer > 3 else (1, 2)
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
    half = steps[len(steps) // 2:]
    found = {part: float(np.median([step[part] for step in half])) for part in half[0]}
    found |= {"step": sum(found.values()), "evaluation": steps[2].get("evaluation", 0)}
    return found | {"GB of the GPU": torch.cuda.max_memory_allocated() / 1e9 if s.device == "cuda" else 0}


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--big", action="store_true")
    for name in ("nanogpt", "compile", "dtype"):
        parser.add_argument(f"--{name}", default="")
    flags = parser.parse_args()
    on_gpu, sizes = torch.cuda.is_available(), dict(vocab_size=540, steps=60, base_steps=60)
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    if flags.big:
        sizes = dict(vocab_size=50304, block_size=1024, n_layer=12, n_head=12, n_embd=768,
                     batch_size=16 if on_gpu else 1, steps=60 if on_gpu else 6)
    else:
        os.environ["OMP_NUM_THREADS"] = "1"  # as the processes of a study have it
    s = train.Settings(name="x", documents=500, device="cuda" if on_gpu else "cpu", compile=flags.compile,
                       dtype=flags.dtype or ("bfloat16" if flags.big else "float32"), **sizes)
    where = train.provenance(s.device)
    print(f"{where['machine']}, {s.dtype}, compile {s.compile or 'off'}, {where['commit']}", flush=True)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # a process each
        for name in ["ema"] if flags.big else ["ema", "base"]:
            ms, rows = pool.apply(step_times, (s, name)), train.make_job(s, 0, name).batch_size
            speed = 1000 * rows * s.block_size / ms["step"]
            print(f"{name}, {rows} x {s.block_size}: {speed:,.0f} tokens/s; ms:",
                  ", ".join(f"{part} {x:,.1f}" for part, x in ms.items() if x), flush=True)
        for _ in range(3 if flags.nanogpt else 0):  # in turn: a machine's speed drifts
            ours, theirs = (pool.apply(step_times, (s, "ema", x))["step"] for x in ("", flags.nanogpt))
            print(f"ms a step: {ours:.1f} ours, {theirs:.1f} with nanoGPT's model", flush=True)


if __name__ == "__main__":
    main()
