"""Kills a study with SIGKILL at random moments until it has been killed often enough, and compares every end that it
comes to with that of a study that nothing interrupted: logs, checkpoints and reports, byte for byte or by checksum.

    python tests/soak.py --kills 50 > results/soak.txt

A kill hits all processes, the parent alone (its children must notice and stop), or one child, as an out-of-memory
killer would (the others go on, and the study names what is missing).
"""
import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import checksum  # noqa: E402
from model import load_checkpoint, previous  # noqa: E402
from train import code_version  # noqa: E402

ARMS = ["target", "curriculum", "ema", "lora-4", "ema-then-english"]
FLAGS = ["--preset", "smoke", "--documents", "600", "--base_steps", "60", "--steps", "50", "--checkpoint_every", "5",
         "--device", "cpu", "--dtype", "float32", "--only", ",".join(ARMS), "--name", "soak"]


def start(folder):
    return subprocess.Popen([sys.executable, ROOT / "train.py", *FLAGS], cwd=folder, start_new_session=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def end(folder):
    """{file: contents} of a finished study; of a checkpoint, the checksum."""
    run = folder / "runs/soak"
    files = [*run.glob("seed*/*.jsonl"), *run.glob("main/*.*"), *run.glob("seed*/data/*.bin"), *run.glob("seed*/*.pt")]
    return {p.relative_to(run): checksum(load_checkpoint(p)) if p.suffix == ".pt" else p.read_bytes()
            for p in files if p.name not in ("settings.json", "figure.png") and not p.name.endswith(".prev.pt")}


def stage(folder):
    """What the study was at when it was killed, from its files."""
    run = folder / "runs/soak"
    seed = run / "seed3000"
    if list(run.rglob("*.tmp")):
        return "writing a file"
    if (run / "main/metrics.jsonl").exists():
        return "report"
    if list(seed.glob("*.pt")) and any(p.stem.split(".")[0] in ARMS for p in seed.glob("*.pt")):
        return "CPT"
    if (seed / "base.pt").exists():
        return "pretraining, or the start of CPT"
    return "data preparation, or the start of pretraining" if seed.exists() else "start-up"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    flags = parser.parse_args()
    rng, kills, ends, different = Random(flags.seed), Counter(), 0, []
    with tempfile.TemporaryDirectory() as tmp:
        reference, folder, n = Path(tmp) / "reference", Path(tmp) / "0", 0
        reference.mkdir()
        folder.mkdir()
        clock = time.monotonic()
        assert start(reference).wait() == 0
        seconds, expected = time.monotonic() - clock, end(reference)
        print(f"commit {code_version()}: python train.py {' '.join(FLAGS)}\nuninterrupted: {seconds:.0f} s, {len(expected)} "
              "files to compare", flush=True)
        while kills.total() < flags.kills:
            process = start(folder)
            try:
                _, err = process.communicate(timeout=rng.uniform(0.05, 0.6) * seconds)
                found = end(folder) if process.returncode == 0 else {}
                wrong = sorted(str(k) for k in {*expected, *found} if expected.get(k) != found.get(k))
                ends, different = ends + 1, different + wrong
                print(f"end {ends} after {kills.total()} kills: " + (f"DIFFERENT {wrong} {err}" if wrong else "equal"), flush=True)
                n += 1
                folder = Path(tmp) / str(n)
                folder.mkdir()
            except subprocess.TimeoutExpired:
                kills[stage(folder)] += 1
                whom = rng.choice(["all", "parent", "child"])
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                if whom == "all":
                    os.killpg(process.pid, signal.SIGKILL)
                elif whom == "parent" or not children:
                    process.kill()
                else:
                    os.kill(int(rng.choice(children)), signal.SIGKILL)
                process.communicate()
        while start(folder).wait():  # the last one may go on to its end
            different.append("a rerun failed")
            break
        found = end(folder)
        different += sorted(str(k) for k in {*expected, *found} if expected.get(k) != found.get(k))
        print(f"end {ends + 1}: " + ("equal" if found == expected else "DIFFERENT"))
        leftover = [p for p in folder.rglob("*.pt") if previous(p).exists()]
        print(f"{kills.total()} kills: " + ", ".join(f"{count} at {where}" for where, count in kills.most_common()))
        print(f"{ends + 1} ends compared, {len(different)} differences; {len(leftover)} checkpoints keep their predecessor")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
