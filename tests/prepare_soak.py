"""Kills `data.py prepare` at random moments and starts two at once: does it always end with the same bytes?

    python tests/prepare_soak.py --rounds 20 > results/prepare_soak.txt

A round starts `prepare` of one name again and again, every third time two at once, and kills each start at a
random moment, until one ends by itself. Then every file must equal that of an uninterrupted run, byte for
byte, and `data.py check` must agree. The text comes as plain text and as JSON lines, each plain and zipped.
"""
import gzip
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prepare_speed import data, prepare, write_text

DATA = Path(data.__file__)
FILES = ("train.bin", "val.bin", "tokenizer.json", "manifest.json")


def make_corpus(folder, megabytes):
    """Four files of `megabytes` each: plain text, JSON lines, and both zipped."""
    folder.mkdir()
    for seed, name in enumerate(("a.txt", "b.txt.gz", "c.jsonl", "d.json.gz")):
        path = folder / "text"
        write_text(path, megabytes, seed)
        content = path.read_bytes()
        path.unlink()
        if "json" in name:
            documents = content.decode().strip("\n").split("\n\n")
            content = "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()
        (folder / name).write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)


def start(name, corpus, tmp):
    """A `prepare` in a process of its own, with small batches: it notes its progress after each."""
    code = "import data; data.BATCH = 1 << 18; data.main()"
    flags = [sys.executable, "-c", code, "prepare", corpus, "--name", name, "--out", tmp]
    flags += ["--tokenizer", tmp / "bpe"]
    return subprocess.Popen(list(map(str, flags)), cwd=DATA.parent, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True)


def one_round(name, corpus, tmp, seconds, rng):
    """Starts and kills until one ends. Returns how many were killed, and how many refused."""
    killed = refused = 0
    while not (tmp / name).exists():
        both = [start(name, corpus, tmp) for _ in range(2 if rng.random() < 1 / 3 else 1)]
        end = time.monotonic() + rng.uniform(0.2, 0.9) * seconds
        while any(p.poll() is None for p in both) and time.monotonic() < end:
            time.sleep(0.005)
        for p in both:
            p.send_signal(signal.SIGKILL)
            _, err = p.communicate()
            if p.returncode == -signal.SIGKILL:
                killed += 1
            elif p.returncode == 2 and ("is running" in err or "is there already" in err):
                refused += 1
            elif p.returncode:
                raise SystemExit(f"{name}: prepare failed with {p.returncode}: {err}")
    return killed, refused


def main():
    parser = data.one_line_parser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--mb", type=int, default=4, help="of each of the four files")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    flags = parser.parse_args()
    rng, kills, refusals, wrong = random.Random(flags.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        make_corpus(tmp / "corpus", flags.mb)
        prepare("bpe", [tmp / "corpus"], tmp, tokenizer="bpe", vocab_size=2048)
        clock = time.monotonic()
        if start("whole", tmp / "corpus", tmp).wait():
            raise SystemExit("prepare failed without any kill")
        seconds = time.monotonic() - clock
        for n in range(flags.rounds):
            killed, refused = one_round(f"r{n}", tmp / "corpus", tmp, seconds, rng)
            kills, refusals = kills + killed, refusals + refused
            for file in FILES:
                found, expected = (tmp / f"r{n}" / file).read_bytes(), (tmp / "whole" / file).read_bytes()
                if file == "manifest.json":
                    expected = expected.replace(b'"whole",\n', b'"r%d",\n' % n, 1)
                if found != expected:
                    wrong += 1
                    print(f"round {n}: {file} differs")
            check = subprocess.run([sys.executable, DATA, "check", tmp / f"r{n}"], capture_output=True)
            wrong += check.returncode != 0 or {p.name for p in (tmp / f"r{n}").iterdir()} != set(FILES)
        print(f"{flags.rounds} rounds of {4 * flags.mb} MB, {seconds:.1f} s each when undisturbed: {kills} "
              f"processes killed, {refusals} refused because another was at work, {wrong} wrong results")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
