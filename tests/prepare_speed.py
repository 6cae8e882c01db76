"""How fast `data.py prepare` is beside tiktoken's own batch encoding of that text, and the memory it takes.

    python tests/prepare_speed.py --mb 200 > results/prepare.txt

Medians of three runs each, in turn.
"""
import contextlib
import os
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import data  # noqa: E402
from data import load_tokenizer, next_batch, read_documents  # noqa: E402


def write_text(path, megabytes, seed=0):
    """Words of invented syllables by Zipf's law, in documents of 20 to 400 words: as many tokens as prose."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("ka te xi mu ro sa ñe ha lu zi tx ek ar on".split(), k=rng.randint(1, 5)))
             for _ in range(30_000)]
    weights = [1 / (i + 2) for i in range(len(words))]
    with open(path, "w", encoding="utf-8") as f:
        while f.tell() < megabytes << 20:
            text = " ".join(rng.choices(words, weights, k=200_000)).split(" ")
            while text:
                n = rng.randint(20, 400)
                f.write(" ".join(text[:n]) + ".\n\n")
                text = text[n:]


def prepare(*args, **kwargs):
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        data.prepare(*args, **kwargs)


def prepare(*args, **kwargs):
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        data.prepare(*args, **kwargs)


def read_start(path, characters):
    """The documents of the first so many characters of a file."""
    documents = []
    with open(path, "rb") as f:
        for text in read_documents(f):
            documents.append(text)
            characters -= len(text)
            if characters < 0:
                break
    return documents


def main():
    parser = data.one_line_parser(description=__doc__)
    parser.add_argument("--mb", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        write_text(tmp / "small.txt", 4)
        write_text(tmp / "text.txt", flags.mb)
        prepare("bpe", [tmp / "small.txt"], tmp, tokenizer="bpe", vocab_size=8192)
        size, seconds = (tmp / "text.txt").stat().st_size / 1e6, {"tiktoken": [], "prepare": []}
        prepare("text", [tmp / "text.txt"], tmp, tokenizer=str(tmp / "bpe"))  # while this process is small
        shutil.rmtree(tmp / "text")
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        documents = next_batch(read_documents(tmp / "text.txt"), 200_000_000) if flags.runs > 1 else []
        share = sum(len(d.encode()) for d in documents) / 1e6 / size
        for _ in range(flags.runs):
            clock = time.perf_counter()
            prepare("text", [tmp / "text.txt"], tmp, tokenizer=str(tmp / "bpe"))
            seconds["prepare"].append(time.perf_counter() - clock)
            shutil.rmtree(tmp / "text")
            if documents:
                clock = time.perf_counter()
                encoding = load_tokenizer(tmp / "bpe").encoding
                encoding.encode_ordinary_batch(documents, num_threads=os.cpu_count())
                seconds["tiktoken"].append((time.perf_counter() - clock) / share)
        print(f"{size:.0f} MB of text, {os.cpu_count()} cores, medians of {flags.runs}")
        speed = {name: size / statistics.median(s) for name, s in seconds.items() if s}
        for name, mbs in speed.items():
            print(f"{name:10} {mbs:6.1f} MB/s")
        if documents:
            print(f"prepare / tiktoken's encode_ordinary_batch: {speed['prepare'] / speed['tiktoken']:.2f}")
        print(f"resident memory: {memory:.0f} MB at most")


if __name__ == "__main__":
    main()
