"""What several tests need: one small world, its tokenizer and sources, and a model to train in a second."""
import contextlib
import io
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)  # for the child processes

import bench  # noqa: E402
import train  # noqa: E402
from data import Tokenizer, World, train_bpe, write_corpus  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402

torch.set_num_threads(1)


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


@pytest.fixture
def no_compiler(monkeypatch):
    """torch.compile fails, as it does where there is no C compiler."""
    def fail(*_, **__):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(torch, "compile", fail)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """Settings of a run of a second, and a folder with its prepared data and trained base."""
    s = train.Settings(**train.PRESETS["smoke"] | dict(documents=300, base_steps=6, steps=12, copain_items=2,
                                                       label_items=4, cloze_items=4, device="cpu", dtype="float32"))
    folder = tmp_path_factory.mktemp("smoke")
    train.prepare(s, folder, ("english", "target"))
    train.train(s, train.base_job(s), folder)
    return s, folder


SMOKE = ("--preset", "smoke", "--device", "cpu", "--dtype", "float32", "--documents", "300", "--base_steps", "6", "--steps",
         "12", "--copain_items", "3", "--label_items", "6", "--cloze_items", "6")


@pytest.fixture
def call(monkeypatch, capsys):
    """call(folder, script, flags): runs a script in this process; returns (exit code, stdout, stderr)."""
    def run(folder, script, *flags):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
        monkeypatch.setattr(bench, "draw_curves", lambda *_: None)  # two seconds; the fixture `study` draws one
        code = 0
        try:
            train.main() if script == "train.py" else runpy.run_path(str(ROOT / script), run_name="__main__")
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
