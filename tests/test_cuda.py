"""What must hold on a GPU. Without one these tests are skipped. NANOCPT_TEST_DEVICE=cpu runs them on the CPU, to prove
the tests themselves: CUDA graphs are then plain compilation there, and NCCL is gloo."""
import dataclasses
import itertools
import math
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import bench
import train
from conftest import rows_of, stop_at
from data import Tokenizer
from model import load_checkpoint, model_from_checkpoint

DEVICE = os.environ.get("NANOCPT_TEST_DEVICE", "cuda")
ON_GPU = DEVICE == "cuda"
pytestmark = pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="no GPU is found")


@pytest.fixture
def make(fresh):
    """make(name, device, **settings): the job of an arm or of the base, which has not begun, in a folder of its own."""
    numbers = itertools.count()
    torch.set_float32_matmul_precision("highest")  # train.py takes TF32, which has too few digits to compare with a CPU

    def new(name, device=DEVICE, **settings):
        job = fresh(name, f"run{next(numbers)}", device=device, **settings)
        if name == "base":
            job.path.unlink()  # of the fixture `smoke`
            job = dataclasses.replace(job, start="")
        return job
    return new


def losses(rows):
    return [row[key] for row in rows if row["train_loss"] for key in ("train_loss", "train_loss_max")]


@pytest.mark.parametrize("name", ["base", "target+english", "ema", "lora-4", "l2-10"])
def test_training_in_float32_has_the_losses_of_the_cpu(make, name):
    here, cpu = train.train(make(name)), train.train(make(name, "cpu"))
    assert len(losses(here)) > 2 and losses(here) == pytest.approx(losses(cpu), abs=1e-3)


@pytest.mark.parametrize("name", ["base", "ema"])
def test_training_in_bfloat16_stays_near_float32(make, name):
    coarse, fine = train.train(make(name, dtype="bfloat16")), train.train(make(name))
    assert losses(coarse) == pytest.approx(losses(fine), abs=0.05) and losses(coarse) != losses(fine)


@pytest.mark.parametrize("mode, name", [("default", "ema"), ("reduce-overhead", "ema"), ("reduce-overhead", "base")])
def test_compiled_training_has_the_losses_of_eager_and_skips_no_cuda_graph(make, mode, name):
    eager = train.train(make(name))
    torch._dynamo.reset()
    counters.clear()
    assert losses(train.train(make(name, compile=mode))) == pytest.approx(losses(eager), abs=1e-3)
    assert counters["stats"]["unique_graphs"] == 1
    assert not (ON_GPU and counters["inductor"]["cudagraph_skips"])


def test_distributed_data_parallel_with_one_rank_has_the_losses_of_one_process(make, tmp_path):
    # One GPU takes one rank, and for one rank train() wraps nothing. So what it calls to compile wraps the model here.
    alone, job = train.train(make("ema")), make("ema", compile="default")
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    (tmp_path / "ranks.py").write_text(
        "import pickle, torch, torch.distributed as dist, train\n"
        "from torch.nn.parallel import DistributedDataParallel\n"
        "dist.init_process_group()\n"
        "torch.compile = lambda model, mode: DistributedDataParallel(model)\n"
        "train.train(pickle.load(open('job', 'rb')))\n"
        "dist.barrier()\n"
        "dist.destroy_process_group()\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    end = subprocess.run([*torchrun, "ranks.py"], cwd=tmp_path, env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
                         text=True, capture_output=True)
    assert end.returncode == 0, end.stderr
    assert losses(rows_of(job.path.with_suffix(".jsonl"))) == pytest.approx(losses(alone), abs=1e-3)


@pytest.mark.parametrize("name, at", [("base", 4), ("ema", 7)])
def test_a_stopped_run_goes_on_to_the_end_of_an_uninterrupted_one(make, name, at):
    parts, whole = make(name), make(name)
    part = train.train(parts, stopping=stop_at(at))
    assert part[-1]["step"] < at and load_checkpoint(parts.path)["step"] == at
    assert losses(train.train(parts)) == pytest.approx(losses(train.train(whole)), abs=1e-3)
    # A GPU adds up attention's gradients in any order. Adam enlarges the noise of a key's bias, which has no effect.
    a, b = (nn.utils.parameters_to_vector(load_checkpoint(job.path)["model"].values()) for job in (parts, whole))
    assert (a - b).norm() < 1e-3 * b.norm()


def test_an_evaluation_agrees_with_the_cpu(make):
    job = make("target")
    ckpt, s = load_checkpoint(job.start), job.settings
    model, tok = model_from_checkpoint(ckpt), Tokenizer.from_json(ckpt["tokenizer"])
    validation = train.open_data(job, "val", s.validation_sources(), tok.dtype)
    benchmark, found = bench.Benchmark(s.world(), tok, *s.benchmark_arguments()), []
    for device in ("cpu", DEVICE):
        model.to(device)
        before = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        found.append([bench.evaluate(model, benchmark, validation, before),
                      bench.choice_scores(model, tok, benchmark.copain + benchmark.label["english"])])
    (cpu_row, cpu_scores), (row, scores) = found
    for key in cpu_row:
        if "ppl" in key or "shift" in key:
            assert row[key] == pytest.approx(cpu_row[key], rel=1e-4), key
    for item in cpu_scores:
        assert scores[item] == pytest.approx(cpu_scores[item], abs=1e-3)
    assert abs(row["copain"] - cpu_row["copain"]) <= 100 / len(benchmark.copain)  # one near tie may fall otherwise


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("bfloat16", 1e-2)])
def test_muon_makes_the_steps_of_the_cpu(dtype, tolerance):
    ends = []
    for device in ("cpu", DEVICE):
        generator = torch.Generator().manual_seed(0)
        shapes = [(32, 32), (96, 32), (32, 128), (32, 32)]
        params = [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]
        muon = train.StackedMuon([{"params": params, "dtype": getattr(torch, dtype)}], lr=0.02, weight_decay=0.01)
        for _ in range(5):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator).to(device)
            muon.step()
        ends.append([p.detach().cpu() for p in params])
    for cpu, here in zip(*ends):
        torch.testing.assert_close(here, cpu, atol=tolerance, rtol=tolerance)


def test_a_checkpoint_written_here_is_evaluated_and_trained_on_the_cpu(make):
    job = make("ema")
    last = train.train(job)[-1]
    ckpt = load_checkpoint(job.path)
    assert {x.device.type for part in ("model", "ema") for x in ckpt[part].values()} == {"cpu"}
    rows = train.train(dataclasses.replace(make("target", "cpu"), start=str(job.path)))
    assert rows[0]["ppl_target"] == pytest.approx(last["ppl_target"], rel=1e-4)
    assert rows[-1]["step"] == job.steps and math.isfinite(rows[-1]["train_loss"])
