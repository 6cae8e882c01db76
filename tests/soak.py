"""Kills a study with SIGKILL at random moments, again and again, and compares every end that it comes to with
that of a study that nothing interrupted: all files but figures and half-written ones, checkpoints by content.

    python tests/soak.py 20 > results/soak.txt      # 20 kills

A kill hits all processes; or the parent alone, whose children must notice; or one child, as the kernel does
when memory runs out: the others go on, and the study names the arm and exits with 1.
"""
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from conftest import ROOT, equal  # which also makes the next two importable
from model import load_checkpoint
from train import provenance

FLAGS = ("--preset smoke --name soak --device cpu --dtype float32 --processes 2 --documents 400 --steps 50 "
         "--base_steps 60 --checkpoint_every 5 --copain_items 3 --label_items 6 --validation_blocks 4 "
         "--only target,ema,lora-4").split()


def start(folder):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, ROOT / "train.py", *FLAGS], cwd=folder, text=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill(process, whom):
    """Kills `all` processes of a study, its `parent` alone, or a `child` that trains, if there is one."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    if whom == "child" and workers:
        os.kill(int(workers[-1]), signal.SIGKILL)
    elif whom == "parent":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)


def contents(folder):
    files = [p for p in (folder / "runs").rglob("*") if p.is_file() and p.suffix not in (".png", ".tmp")]
    return {str(p.relative_to(folder)): load_checkpoint(p) if p.suffix == ".pt" else p.read_bytes()
            for p in files}


def main(n_kills):
    rng, kills, ends, different, is_last = Random(0), Counter(), 0, 0, False
    with tempfile.TemporaryDirectory() as tmp:
        began = time.monotonic()
        assert start(Path(tmp, "whole")).wait() == 0
        seconds, expected = time.monotonic() - began, contents(Path(tmp, "whole"))
        commit = provenance("cpu")["commit"]
        print("python train.py", *FLAGS, f"\ncommit {commit}, {seconds:.0f} s, {len(expected)} files")
        while not is_last:
            folder, is_last = Path(tmp, str(ends)), kills.total() == n_kills
            process = start(folder)
            try:
                _, err = process.communicate(timeout=None if is_last else rng.uniform(0.1, 0.6) * seconds)
            except subprocess.TimeoutExpired:
                whom = rng.choice(["all", "parent", "child"])
                kills[f"{whom} with {len(list(folder.rglob('*.pt')))} of 4 checkpoints there"] += 1
                kill(process, whom)
                _, err = process.communicate(timeout=120)  # which waits for the last of the processes
            if process.returncode == 0:
                ends, found = ends + 1, contents(folder)
                wrong = [p for p in {*found, *expected} if not equal(found.get(p), expected.get(p))]
                different += len(wrong)
                print(f"end {ends} after {kills.total()} kills: {wrong or 'equal'}", flush=True)
            elif process.returncode != -signal.SIGKILL and "its process was killed" not in err:
                sys.exit(f"exit code {process.returncode}: {err}")
    print(f"{dict(kills)}\n{kills.total()} kills, {ends} ends, {different} files differ")
    sys.exit(different > 0)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
