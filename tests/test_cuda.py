"""What must hold on a GPU; skipped without one. NANOCPT_TEST_DEVICE=cpu tests the tests themselves."""
import dataclasses
import itertools
import os

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector

import train
from bench import Benchmark
from conftest import train_until, weights
from data import Tokenizer
from model import load_checkpoint, model_from_checkpoint

DEVICE = os.environ.get("NANOCPT_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU is found")


@pytest.fixture
def make(fresh):
    """make(name, device, **settings): the job of an arm or of a base, not begun, in a folder of its own."""
    numbers = itertools.count()
    torch.set_float32_matmul_precision("highest")  # TF32 has too few digits to compare with a CPU

    def new(name, device=DEVICE, **settings):
        job = fresh(name, f"run{next(numbers)}", device=device, **settings)
        if name == "base":
            job.path.unlink()  # that of the fixture `smoke`
            job = dataclasses.replace(job, start="")
        return job
    return new


def losses(rows):
    return [row[key] for row in rows for key in ("train_loss", "train_loss_max") if key in row]


@pytest.mark.parametrize("name", ["base", "target+english", "ema", "lora-4", "l2-10"])
def test_training_in_float32_has_the_losses_of_the_cpu(make, name):
    here, cpu = train.train(make(name)), train.train(make(name, "cpu"))
    assert len(losses(here)) > 2 and losses(here) == pytest.approx(losses(cpu), abs=1e-3)


@pytest.mark.parametrize("name", ["base", "ema"])
def test_training_in_bfloat16_stays_near_float32(make, name):
    coarse, fine = train.train(make(name, dtype="bfloat16")), train.train(make(name))
    assert losses(coarse) == pytest.approx(losses(fine), abs=0.05) and losses(coarse) != losses(fine)


@pytest.mark.parametrize("mode, name", [("default", "ema"), ("reduce-overhead", "base")])
def test_compiled_training_has_the_losses_of_eager_and_skips_no_cuda_graph(make, mode, name):
    eager = train.train(make(name))
    torch._dynamo.reset()
    counters.clear()
    assert losses(train.train(make(name, compile=mode))) == pytest.approx(losses(eager), abs=1e-3)
    assert counters["stats"]["unique_graphs"] == 1
    assert DEVICE == "cpu" or not counters["inductor"]["cudagraph_skips"]


def test_distributed_data_parallel_with_one_rank_has_the_losses_of_one_process(make, monkeypatch):
    alone, job = train.train(make("ema")), make("ema", compile="default")
    # One GPU takes one rank, for which train() wraps nothing. So what it calls to compile wraps the model.
    monkeypatch.setattr(torch, "compile", lambda model, mode: DistributedDataParallel(model))
    dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
    assert losses(train.train(job)) == pytest.approx(losses(alone), abs=1e-3)
    dist.destroy_process_group()


@pytest.mark.parametrize("name, at", [("base", 5), ("ema", 9)])
def test_a_stopped_run_goes_on_to_the_end_of_an_uninterrupted_one(make, name, at, monkeypatch):
    parts, whole = make(name), make(name)
    train_until(parts, at, monkeypatch)
    assert 0 < load_checkpoint(parts.path)["step"] < at
    assert losses(train.train(parts)) == pytest.approx(losses(train.train(whole)), abs=1e-3)
    # A GPU adds up in any order, and Adam enlarges the noise of a key's bias, which has no effect.
    a, b = (parameters_to_vector(weights(job.path).values()) for job in (parts, whole))
    assert (a - b).norm() < 1e-3 * b.norm()


def test_an_evaluation_agrees_with_the_cpu(make):
    ckpt = load_checkpoint(make("target").start)
    model, tok = model_from_checkpoint(ckpt), Tokenizer.from_json(ckpt["tokenizer"])
    benchmark = Benchmark(train.World(**ckpt["world"]), tok, *ckpt["benchmark"])
    cpu, here = (benchmark(model.to(device)) for device in ("cpu", DEVICE))
    assert here["label_ppl_target"] == pytest.approx(cpu["label_ppl_target"], rel=1e-4)
    assert here["copain"] == pytest.approx(cpu["copain"], abs=100 / len(benchmark.copain))  # one near tie


def test_muon_makes_the_steps_of_the_cpu():
    start, gradients, ends = torch.randn(96, 32), torch.randn(5, 96, 32), {}
    for device in ("cpu", DEVICE):
        ends[device] = start.to(device, copy=True).requires_grad_()
        muon = train.Muon([ends[device]], dict(lr=0.02, weight_decay=0.01, dtype=torch.float32))
        for gradient in gradients:
            ends[device].grad = gradient.to(device)
            muon.step()
    torch.testing.assert_close(ends[DEVICE].cpu(), ends["cpu"], atol=1e-4, rtol=1e-4)


def test_a_checkpoint_written_here_is_evaluated_and_trained_on_the_cpu(make):
    job = make("ema")
    last, ckpt = train.train(job)[-1], load_checkpoint(job.path)
    assert {x.device.type for part in ("model", "ema") for x in ckpt[part].values()} == {"cpu"}
    rows = train.train(dataclasses.replace(make("target", "cpu"), start=str(job.path)))
    assert rows[0]["ppl_target"] == pytest.approx(last["ppl_target"], rel=1e-4)
