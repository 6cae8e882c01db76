"""What several tests need: a small world, its tokenizer and sources, models, jobs and a study of seconds."""
import contextlib
import dataclasses
import io
import itertools
import json
import multiprocessing.forkserver
import os
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)  # for the child processes

import train  # noqa: E402
from data import Mixture, Tokenizer, World, train_bpe, write_corpus  # noqa: E402
from model import GPT, GPTConfig, load_checkpoint  # noqa: E402
from results import report, studies  # noqa: E402, F401  studies fills the tables of train.py

torch.set_num_threads(1)
os.fsync = lambda file: None  # no test cuts the power, and the disk takes three seconds
# The processes of train.py start in a tenth of the time where a fork server has imported what they need.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train", "torch._dynamo"])
train.mp = SimpleNamespace(get_context=lambda method: CONTEXT, parent_process=multiprocessing.parent_process,
                           active_children=multiprocessing.active_children)
SMOKE = ("--preset", "smoke", "--device", "cpu", "--dtype", "float32", "--documents", "300", "--base_steps",
         "6", "--steps", "12", "--copain_items", "3", "--label_items", "6", "--processes", "2")


@pytest.fixture(scope="session", autouse=True)
def fork_server():  # and not above, for the processes import this file, too
    multiprocessing.forkserver.ensure_running()  # it imports while the first tests run


@pytest.fixture(scope="session")
def world():
    return World()


@pytest.fixture(scope="session")
def documents(world):
    return {name: write_corpus(world, name, 1500, seed=0) for name in ("english", "target", "third-language")}


@pytest.fixture(scope="session")
def tok(documents):
    return Tokenizer(train_bpe([d for docs in documents.values() for d in docs], 2048))


@pytest.fixture(scope="session")
def sources(documents, tok):
    return {name: tok.encode_documents(docs) for name, docs in documents.items()}


@pytest.fixture
def tiny():
    """A GPT of 10 tokens with room for 16, always the same."""
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=10, block_size=16, n_layer=2, n_head=2, n_embd=16))


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """Settings of a run of a second, and the folder of its one seed with its data and a trained base."""
    s, folder = train.parse_flags([*SMOKE, "--checkpoint_every", "4"]), tmp_path_factory.mktemp("smoke")
    base = dataclasses.replace(train.make_job(s, 0, "base"), folder=folder)
    train.prepare(base)
    train.train(base)
    return s, folder


@pytest.fixture
def fresh(smoke, tmp_path):
    """fresh(name, **settings): the job of an arm, or of a base to train anew, in a new copy of the folder."""
    numbers = itertools.count()

    def make(name, **settings):
        s = dataclasses.replace(smoke[0], **settings)
        folder = shutil.copytree(smoke[1], tmp_path / f"run{next(numbers)}")
        start = str(folder / "base.pt")
        if name == "base":
            start = ""
            for file in folder.glob("base.*"):
                file.unlink()
        job = dataclasses.replace(train.make_job(s, 0, name), folder=folder, needs=None, start=start)
        train.prepare(job)
        return job
    return make


def train_until(job, step, monkeypatch):
    """Trains a job until it asks for the batch of a step. Nothing is written after that, as after a kill."""
    def batch(self, n, *args):
        if n == step:
            raise AssertionError("stopped")
        return take(self, n, *args)

    take = Mixture.batch
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="stopped"):
        patch.setattr(Mixture, "batch", batch)
        train.train(job)


def weights(path):
    return load_checkpoint(path)["model"]


def equal(a, b):
    """Whether two nested dicts, lists, tensors or plain values hold the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def times(folder, pattern="*"):
    """{path: when it was last written} of what lies below a folder."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob(pattern)}


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def call(monkeypatch, capsys):
    """call(folder, script, *flags): runs a script in this process; returns (exit code, stdout, stderr)."""
    def run(folder, script, *flags):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
        monkeypatch.setattr(report, "draw_figure", lambda *_: None)  # slow; the fixture `study` draws one
        monkeypatch.setattr(train.signal, "SIG_DFL", train.signal.SIG_IGN)  # no broken pipe may end pytest
        code = 0
        try:
            runpy.run_module(script.removesuffix(".py").replace("/", "."), run_name="__main__")
        except SystemExit as e:
            code = e.code or 0
        return code, *capsys.readouterr()
    return run


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """The whole study `main` with two runs: (its folder, what it printed)."""
    path, out = tmp_path_factory.mktemp("study"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(path)
        train.main([*SMOKE, "--seeds", "2"])
    return path, out.getvalue()
