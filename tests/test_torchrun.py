"""Several processes train one model, as under `torchrun --nproc_per_node=2 train.py ...`, here with gloo on the CPU. The
processes are started without torchrun itself, which CI runs once, to spare the suite its start-up."""
import json
import os
import signal
import socket
import sys

import numpy as np
import pytest
import torch

import train
from conftest import SMOKE


def rows_of(folder, name):
    return [json.loads(line) for line in (folder / "runs/smoke/seed2026" / f"{name}.jsonl").read_text().splitlines()]


def one_rank(rank, folder, port, dies):
    """The body of a process: the command line of train.py, where torchrun would have set the environment."""
    os.chdir(folder)
    sys.stdout, sys.stderr = (open(f"{name}{rank}", "w") for name in ("out", "err"))
    os.environ.update(TORCHELASTIC_RUN_ID="test", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
                      MASTER_ADDR="localhost", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    factor = train.lr_factor

    def hook(step, job):
        if dies and rank == 1 and job.name == "curriculum" and step == 11:
            os.kill(os.getpid(), signal.SIGKILL)
        return factor(step, job)

    train.lr_factor = hook
    train.main([*SMOKE, "--only", "curriculum"])


def run(folder, dies):
    """Exit codes of two ranks, and what the first wrote to stdout and stderr."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    context = train.process_context()
    processes = [context.Process(target=one_rank, args=(rank, folder, port, dies)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    return [process.exitcode for process in processes], (folder / "out0").read_text(), (folder / "err0").read_text()


def test_two_processes_train_as_one_and_when_one_dies_the_run_ends_and_a_rerun_goes_on(study, tmp_path):
    codes, _, err = run(tmp_path, dies=True)
    assert codes == [1, -signal.SIGKILL] and "a process of this run failed" in err.splitlines()[-1], err
    assert train.load_checkpoint(tmp_path / "runs/smoke/seed2026/curriculum.pt")["step"] == 10
    codes, out, err = run(tmp_path, dies=False)
    assert codes == [0, 0], err
    assert out.count("report: ") == 1 and not (tmp_path / "out1").read_text()  # the first alone evaluates and writes
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


def test_a_batch_of_fewer_rows_than_processes_is_refused(smoke, monkeypatch):
    monkeypatch.setattr(train, "ranks", lambda: (0, 16))
    with pytest.raises(ValueError, match="a batch of 8 rows cannot be cut for 16 processes"):
        train.train(smoke[0], train.arm_job(smoke[0], "target"), smoke[1])


@pytest.mark.parametrize("device, processes, cores, gpus, at_once", [
    ("cpu", 0, 2, 1, 3), ("cpu", 5, 2, 1, 5), ("cuda", 0, 16, 1, 8), ("cuda", 0, 1, 4, 4), ("cuda", 0, 64, 8, 64),
    ("cuda", 2, 64, 8, 2)])
def test_every_gpu_gets_a_process_and_none_more_than_eight(device, processes, cores, gpus, at_once):
    assert train.processes_at_once(train.Settings(device=device, processes=processes), cores, gpus) == at_once


def test_without_a_compiler_the_model_trains_uncompiled_and_says_so(tiny, no_compiler, capsys):
    assert train.wrapped(tiny, "default", 2, 8) is tiny and train.wrapped(tiny, "", 2, 8) is tiny
    assert "torch.compile failed (RuntimeError), going on without" in capsys.readouterr().err
    assert all(p.grad is None for p in tiny.parameters())
