"""Several processes train one model: `torchrun --nproc_per_node=2 train.py ...`, here with gloo on the CPU."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import train
from conftest import SMOKE


def rows_of(folder, name):
    return [json.loads(line) for line in (folder / "runs/smoke/seed2026" / f"{name}.jsonl").read_text().splitlines()]


def test_two_processes_train_as_one_and_when_one_dies_the_run_ends_and_a_rerun_goes_on(study, tmp_path):
    (tmp_path / "hooked.py").write_text(
        "import os, signal, sys, train\n"
        "factor = train.lr_factor\n"
        "def hook(step, job):\n"
        "    if os.environ['FAIL'] == os.environ['RANK'] and job.name == 'curriculum' and step == 11:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return factor(step, job)\n"
        "train.lr_factor = hook\n"
        "train.main(sys.argv[1:])\n")

    def run(fail):
        return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                               "hooked.py", *SMOKE, "--only", "curriculum"], cwd=tmp_path, text=True, timeout=100,
                              capture_output=True, env=os.environ | {"FAIL": fail, "GLOO_SOCKET_IFNAME": "lo"})

    died = run("1")
    assert died.returncode != 0 and "a process of this run failed" in died.stderr
    assert train.load_checkpoint(tmp_path / "runs/smoke/seed2026/curriculum.pt")["step"] == 10
    done = run("")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1  # the first process alone evaluates and writes
    for name in ("base", "curriculum"):
        together, alone = rows_of(tmp_path, name), rows_of(study[0], name)
        assert [r["step"] for r in together] == [r["step"] for r in alone]
        for key in ("train_loss", "train_loss_max"):
            assert [r[key] for r in together[1:]] == pytest.approx([r[key] for r in alone[1:]], abs=1e-5)
        assert together[-1]["ppl_target"] == pytest.approx(alone[-1]["ppl_target"], rel=1e-5)


@pytest.mark.parametrize("parts, world", [(1, 1), (3, 1), (1, 2), (4, 2), (5, 3), (8, 8)])
def test_micro_batches_cover_the_batch_once_and_their_shares_average_to_its_mean(monkeypatch, parts, world):
    x, seen, mean = np.arange(16).reshape(8, 2), [], 0.0
    for rank in range(world):
        monkeypatch.setattr(train, "ranks", lambda: (rank, world))
        batches = list(train.micro_batches(x, x + 1, parts, "cpu"))
        assert [last for *_, last in batches] == [False] * (len(batches) - 1) + [True]
        for xs, ys, share, _ in batches:
            assert torch.equal(xs + 1, ys)
            seen += xs[:, 0].tolist()
            mean += share * xs.double().mean().item() / world
    assert sorted(seen) == x[:, 0].tolist() and mean == pytest.approx(x.mean())


def test_without_a_compiler_the_model_trains_uncompiled_and_says_so(tiny, monkeypatch, capsys):
    def no_compiler(*_, **__):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    assert train.wrapped(tiny, "default", 2, 8) is tiny and train.wrapped(tiny, "", 2, 8) is tiny
    assert "torch.compile failed (RuntimeError), going on without" in capsys.readouterr().err
    assert all(p.grad is None for p in tiny.parameters())
