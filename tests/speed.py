"""How fast a training step is, and where its time goes; and how time and memory grow with the sizes.

    python tests/speed.py                      tokens/s, ms of every part of a step, share of the best matrix product
    python tests/speed.py --nanogpt ../nanoGPT the same, and nanoGPT's model.py beside it, in turn
    python tests/speed.py --profile            shares of a step of the laptop study: products, other operations, Python
    python tests/speed.py --growth             time and memory against model, sources, corpus and benchmark
    python tests/speed.py --compile default    through torch.compile
    python tests/speed.py --big --dtype bfloat16     the 124M alone, in bfloat16 alone

Every measurement runs in a process of its own, so that its peak memory is its own, too.
"""
import argparse
import contextlib
import importlib.util
import io
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bench  # noqa: E402
import train  # noqa: E402
from data import Mixture, Tokenizer, World, train_bpe, write_corpus  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}  # as train.py sets it
PHASES = ["data", "forward", "backward", "clip", "optimizer", "EMA"]
TOY = dict(vocab_size=880, block_size=64, n_layer=2, n_head=8, n_embd=128)  # the laptop study
PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product_flash_attention_for_cpu",
            "aten::_scaled_dot_product_flash_attention_for_cpu_backward")
BIG = dict(vocab_size=50304)  # GPT-2's 124M; its vocabulary filled up to a multiple of 64


def alone(function, *args, keep_memory=True):
    """function(*args) in a new process, with train.py's memory setting or without it."""
    before = dict(os.environ)
    if keep_memory:
        os.environ.update(KEEP_MEMORY)
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(function, args)
    finally:
        os.environ.clear()
        os.environ.update(before)


def peak_memory(device):
    """MB that this process has had at most: of the GPU's memory, or of main memory."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def small_benchmark(n, n_cloze):
    """A Benchmark of n items of each of Copain's rules and of the label tasks."""
    texts = [text for name in ("english", "target") for text in write_corpus(World(), name, 500, 0)]
    return bench.Benchmark(World(), Tokenizer(train_bpe(texts, 800)), n, n, n_cloze, block_size=64)


def step_times(shape, rows, dtype, device, compile="", steps=20, name="ema", shares=False):
    """{phase: median ms} of the steps of the arm `name` (or of a `base`) on random tokens, each phase waited for; "step":
    ms of whole steps in a row; "evaluation": ms of one; "MB": peak memory."""
    s = train.Settings(name="speed", device=device, dtype=dtype, **{k: v for k, v in shape.items() if k != "vocab_size"})
    train.set_up_torch(s)
    torch.manual_seed(0)
    job, model = train.make_job(s, 0, name), GPT(GPTConfig(**shape)).to(device)
    T, ids = model.config.block_size, np.random.default_rng(0).integers(0, 800, 1_000_000).astype(np.uint16)
    mixture = Mixture({"target": ids, "english": ids}, T, seed=0)
    autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
    forward = torch.compile(model, mode=compile) if compile else model
    optimizers, ema = train.make_optimizers(model, job), train.EMA(model, 0.92)
    times, clock = {}, [0.0]

    def mark(phase):
        if device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        times.setdefault(phase, []).append(1000 * (now - clock[0]))
        clock[0] = now

    def one_step(step, mark):
        x, y, _ = mixture.batch(step, rows, {"target": 0.8, "english": 0.2})
        x, y = torch.from_numpy(np.stack((x, y))).to(device)
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
    found = {}  # with `shares`: the share of a step that each kind of work takes
    if shares:
        found = dict.fromkeys(["matrix products", "other operations"], 0.0)
        with torch.profiler.profile() as profiler:
            mark("start")
            for step in range(steps):
                one_step(step, lambda phase: None)
            mark("profiled steps")
        for event in profiler.key_averages():
            kind = "matrix products" if event.key in PRODUCTS else "other operations"
            found[kind] += event.self_cpu_time_total / 1e3 / times["profiled steps"][0]
        found["Python and waiting"] = 1 - sum(found.values())
    benchmark, before = small_benchmark(15, 15), {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(2):
        mark("start")
        with autocast:
            bench.evaluate(model, benchmark, {"target": ids, "english": ids}, before, n_blocks=2, full=False)
        mark("evaluation")
    medians = {phase: float(np.median(times[phase][3:])) for phase in PHASES}
    return medians | {"evaluation": times["evaluation"][1], "step": times["all steps"][0] / steps,
                      "MB": peak_memory(device), "shares": found}


def step_flop(shape, rows):
    """FLOP of a step: 6 for every weight and token, and 12 n_layer n_embd block_size for every token in attention."""
    config = GPTConfig(**shape)
    with torch.device("meta"):
        n = GPT(config).num_params() - config.block_size * config.n_embd
    return rows * config.block_size * (6 * n + 12 * config.n_layer * config.n_embd * config.block_size)


def best_product(dtype, device):
    """The most FLOP/s that a product of two square matrices reached here: the best of five tries at three sizes."""
    train.set_up_torch(train.Settings(device=device))
    best = 0.0
    for n in (4096, 8192, 16384) if device == "cuda" else (512, 1024, 2048):
        a = torch.randn(n, n, dtype=getattr(torch, dtype), device=device)
        for _ in range(6):
            start = time.perf_counter()
            (a @ a)[0, 0].item()
            best = max(best, 2 * n ** 3 / (time.perf_counter() - start))
            if time.perf_counter() - start > 5:  # a CPU that emulates bfloat16
                break
    return best


def bare_steps(folder, shape, rows, dtype, device, compile="", steps=10, warm_up=10):
    """ms of training steps (forward, backward, clip, optimizer) of our GPT, or of nanoGPT's from the model.py in a
    folder. In its first steps, which are not counted, a process asks the system for memory."""
    s = train.Settings(name="speed", device=device, dtype=dtype)
    train.set_up_torch(s)
    config, model, optimizer = GPTConfig(**shape), None, None
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
        (optimizer,) = train.make_optimizers(model, train.make_job(s, 0, "target"))
    forward = torch.compile(model, mode=compile) if compile else model
    x, times = torch.randint(config.vocab_size, (rows, config.block_size), device=device), []
    for step in range(warm_up + steps):
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = forward(x, x)[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return times[warm_up:]


def speed(device, nanogpt, compile, toy_only, big_only, dtypes):
    """Prints the tables of tokens/s and of the parts of a step."""
    s = train.Settings(device=device)
    print(f"{train.processor(s)}, {torch.get_num_threads()} threads, torch {torch.__version__}, commit "
          f"{train.code_version()}, torch.compile {compile or 'off'}", flush=True)
    cases = [] if big_only else [("toy, an arm", TOY, 16, "ema"), ("toy, a base", TOY, 32, "base")]
    if not toy_only:
        cases.append(("124M", BIG, 16 if device == "cuda" else 1, "ema"))
    rows, ratios = [], []
    for dtype in dtypes:
        ceiling = alone(best_product, dtype, device)
        print(f"matrix products in {dtype}: at most {ceiling / 1e9:,.0f} GFLOP/s", flush=True)
        if ceiling < 2e10:
            print(f"{dtype} is not timed: this machine emulates it")
            continue
        for title, shape, B, name in cases:
            config, steps = GPTConfig(**shape), 30 if device == "cuda" or shape is TOY else 3
            ms = alone(step_times, shape, B, dtype, device, compile, steps, name)
            tokens, flop = B * config.block_size, step_flop(shape, B)
            rows.append([title, dtype, f"{B} x {config.block_size}", f"{1000 * tokens / ms['step']:,.0f}",
                         f"{ms['step']:.1f}", *(f"{ms[phase]:.2f}" for phase in PHASES), f"{ms['evaluation']:.0f}",
                         f"{ms['MB']:,.0f}", f"{flop / ms['step'] / 1e6:,.1f}", f"{1000 * flop / ms['step'] / ceiling:.0%}"])
            if nanogpt and name == "ema":
                kinds, times = [("", True), (nanogpt, False), (nanogpt, True)], [[], [], []]
                for _ in range(2 if shape is BIG else 5):  # in turn
                    for (folder, keep), found in zip(kinds, times):
                        found += alone(bare_steps, folder, shape, B, dtype, device, compile, steps, keep_memory=keep)
                ours, theirs, with_our_setting = (float(np.median(found)) for found in times)
                ratios.append([title, dtype, f"{ours:.1f}", f"{theirs:.1f}", f"{theirs / ours:.2f}",
                               f"{with_our_setting:.1f}", f"{with_our_setting / ours:.2f}"])
    heading = ["shape", "dtype", "batch", "tokens/s", "ms a step", *PHASES, "evaluation, ms", "peak MB", "GFLOP/s",
               "of the best product"]
    print(f"\n{bench.markdown(heading, rows)}\n\nms a step: the mean of whole steps in a row. Its parts, each waited for: "
          "medians. FLOP: 6 for every weight and token, and 12 n_layer n_embd block_size for every token in attention.")
    if ratios:
        heading = ["shape", "dtype", "ms a step", "nanoGPT's", "times as fast", "nanoGPT's with our memory setting",
                   "times as fast"]
        print(f"\n{bench.markdown(heading, ratios)}\n\nMedians, in turn, a process each; without data and EMA.")


def batch_time(n_sources, n_tokens):
    """(median ms of a batch of 64 x 128 from files of n_tokens, MB of its own that 200 of them add to the process)."""
    def own():
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
        return (resident - shared) * resource.getpagesize() / 1e6

    with tempfile.TemporaryDirectory() as folder:
        sources, times = {}, []
        for i in range(n_sources):
            with open(f"{folder}/{i}.bin", "wb") as f:
                f.truncate(2 * n_tokens)  # a sparse file
            sources[str(i)] = np.memmap(f"{folder}/{i}.bin", dtype=np.uint16, mode="r")
        mixture, weights = Mixture(sources, 128, 0), dict.fromkeys(sources, 1 / n_sources)
        mixture.batch(0, 64, weights)
        before = own()
        for step in range(200):
            start = time.perf_counter()
            mixture.batch(step, 64, weights)
            times.append(1000 * (time.perf_counter() - start))
        return float(np.median(times)), own() - before


def benchmark_time(n, device):
    """(median seconds of a full evaluation with n items of each task, peak MB)."""
    benchmark, model, times = small_benchmark(n, n // 2), GPT(GPTConfig(**TOY)).to(device), []
    for _ in range(3):
        start = time.perf_counter()
        benchmark(model)
        times.append(time.perf_counter() - start)
    return float(np.median(times)), peak_memory(device)


def growth(device):
    """Prints time and memory against the size of all that grows."""
    rows = []
    for n_layer, n_embd in ((2, 64), (2, 128), (4, 256), (8, 512), (12, 768)):
        shape = dict(vocab_size=800, block_size=128, n_layer=n_layer, n_head=n_embd // 32, n_embd=n_embd)
        ms = alone(step_times, shape, 8, "float32", device, "", 5)
        with torch.device("meta"):
            n = GPT(GPTConfig(**shape)).num_params()
        rows.append([f"{n / 1e6:.2f}M", f"{ms['step']:.1f}", f"{1000 * 8 * 128 / ms['step']:,.0f}", f"{ms['MB']:,.0f}"])
    print("Model size, batches of 8 x 128, float32\n")
    print(bench.markdown(["parameters", "ms a step", "tokens/s", "peak MB"], rows), flush=True)
    rows = [[str(n), f"{alone(batch_time, n, 10 ** 6)[0]:.2f}"] for n in (2, 8, 32, 64)]
    print(f"\nSources in the mixture, a batch of 64 x 128\n\n{bench.markdown(['sources', 'ms a batch'], rows)}", flush=True)
    rows = []
    for n in (10 ** 6, 10 ** 7, 10 ** 8, 10 ** 9):
        rows.append([f"{n:,}", *(f"{x:.2f}" for x in alone(batch_time, 2, n))])
    print("\nTokens in a source, a batch of 64 x 128\n")
    print(bench.markdown(["tokens", "ms a batch", "MB that 200 batches add"], rows), flush=True)
    rows = [[f"{10 * n:,}", *(f"{x:.2f}" for x in alone(benchmark_time, n, device))] for n in (15, 50, 150, 500)]
    print(f"\nItems of the benchmark, one full evaluation\n\n{bench.markdown(['items', 'seconds', 'peak MB'], rows)}")


def profile(device, dtype):
    """Prints where the time of a step of the laptop study goes: a base's, with Muon, and an arm's, with EMA."""
    rows, ceiling = [], alone(best_product, dtype, device)
    for name, batch in (("base", 32), ("ema", 16)):
        ms = alone(step_times, TOY, batch, dtype, device, "", 50, name, True)
        flops = 1000 * step_flop(TOY, batch) / ms["step"]
        rows.append([name, f"{batch} x 64", f"{ms['step']:.1f}", *(f"{ms[phase]:.1f}" for phase in PHASES),
                     *(f"{share:.0%}" for share in ms["shares"].values()), f"{flops / ceiling:.0%}"])
    print(f"{train.processor(train.Settings(device=device))}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"{dtype}, commit {train.code_version()}; best matrix product {ceiling / 1e9:.0f} GFLOP/s\n")
    print(bench.markdown(["step of", "batch", "ms a step", *PHASES, *ms["shares"], "of the best product"], rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--growth", action="store_true", help="time and memory against the sizes")
    parser.add_argument("--profile", action="store_true", help="shares of a step of the laptop study")
    parser.add_argument("--nanogpt", default="", metavar="FOLDER", help="nanoGPT's files, to time beside")
    parser.add_argument("--compile", default="", metavar="MODE", help="a mode of torch.compile")
    parser.add_argument("--toy", action="store_true", help="leave the 124M out")
    parser.add_argument("--big", action="store_true", help="leave the toys out")
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"], help="by default both, in turn")
    flags = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if flags.nanogpt and not (Path(flags.nanogpt) / "model.py").exists():
        sys.exit(f"error: {flags.nanogpt} holds no model.py: give the folder of nanoGPT's files")
    if flags.growth:
        growth(device)
    elif flags.profile:
        profile(device, (flags.dtype or ["float32"])[0])
    else:
        dtypes = flags.dtype or ["float32", "bfloat16"]
        speed(device, flags.nanogpt, flags.compile, flags.toy, flags.big, dtypes)


if __name__ == "__main__":
    main()
