"""Properties of the loop, the schedules, the arms and the studies, on runs that take a second."""
import dataclasses
import re

import pytest
import torch

import bench
import train
from conftest import SMOKE, equal, rows_of, times, train_until, weights
from curriculum import Curriculum
from data import Mixture, write_file
from model import load_checkpoint, model_from_checkpoint
from results import report


def test_the_learning_rate_warms_up_falls_along_a_cosine_and_stays_on_its_floor():
    s = train.Settings(name="x", steps=100, lr=1.0, warmup=0.1, lr_until=0.5, lr_floor=0.1)
    job = train.make_job(s, 0, "target")
    f = [train.lr_factor(step, job) for step in range(100)]
    assert f[0] == 0.1 and f[9] == f[10] == 1.0 and f[30] == pytest.approx(0.55)
    assert f[50] == f[99] == pytest.approx(0.1)
    assert all(a <= b for a, b in zip(f[:10], f[1:10])) and all(a >= b for a, b in zip(f[10:], f[11:]))


def test_evaluation_is_dense_at_the_start_and_includes_both_ends():
    s = train.Settings(name="x", steps=1000, base_steps=2600)
    assert train.make_job(s, 0, "target").evaluate_at() == {0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000}
    assert train.make_job(s, 0, "base").evaluate_at() == {1300, 2600}


def test_weight_decay_is_on_matrices_only_and_muon_takes_the_blocks_matrices_of_the_base(tiny):
    s = train.Settings(name="x", dtype="float32")
    of_arm = train.make_optimizers(tiny, train.make_job(s, 0, "target"))
    assert list(of_arm) == ["adamw"]
    for group in of_arm["adamw"].param_groups:
        assert all((p.dim() >= 2) == (group["weight_decay"] > 0) for p in group["params"])
    of_base = train.make_optimizers(tiny, train.make_job(s, 0, "base"))
    of_muon = {id(p) for p in of_base["muon"].param_groups[0]["params"]}
    assert of_muon == {id(p) for n, p in tiny.named_parameters() if ".h." in n and p.dim() == 2}
    assert not of_muon & {id(p) for group in of_base["adamw"].param_groups for p in group["params"]}


def test_muon_is_torchs_muon_up_to_the_rounding_of_bfloat16(tiny):
    start = [p.detach() for n, p in tiny.named_parameters() if ".h." in n and p.dim() == 2]
    ours, theirs = ([p.clone().requires_grad_() for p in start] for _ in range(2))
    kwargs = dict(lr=0.1, weight_decay=0.5)
    optimizers = train.Muon(ours, kwargs | {"dtype": torch.float32}), torch.optim.Muon(theirs, **kwargs)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for p, q in zip(ours, theirs):
            p.grad = q.grad = torch.randn(p.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
    for p, q, p0 in zip(ours, theirs, start):
        assert (p - q).norm() < 0.05 * (q - p0).norm()


def test_the_l2_penalty_pulls_back_by_its_share_and_a_full_pull_is_the_base(tiny):
    before = {n: p.detach().clone() for n, p in tiny.named_parameters()}
    with torch.no_grad():
        for p in tiny.parameters():
            p.add_(1.0)
    train.pull_back(tiny, before, 0.25)
    assert all(torch.allclose(p, before[n] + 0.75) for n, p in tiny.named_parameters())
    train.pull_back(tiny, before, 1.0)
    assert all(torch.equal(p, before[n]) for n, p in tiny.named_parameters())


def test_evaluation_and_a_shadow_average_leave_training_bit_identical(fresh, monkeypatch):
    often, shadow, seldom = fresh("target"), fresh("shadow-ema"), fresh("target")
    assert train.train(often)[-1]["ppl_target"] != train.train(shadow)[-1]["ppl_target"]
    monkeypatch.setattr(train.Job, "evaluate_at", lambda self: {0, self.steps})
    train.train(seldom)
    assert all(equal(weights(often.path), weights(job.path)) for job in (seldom, shadow))


@pytest.mark.parametrize("name, stop", [
    ("base", 5), ("ema", 5), ("ema", 9), ("ema-every-10", 9), ("target+english", 5), ("curriculum", 9)])
def test_the_same_seed_gives_the_same_run_bit_for_bit_if_it_is_resumed_too(fresh, monkeypatch, name, stop):
    whole, job = fresh(name), fresh(name)
    rows = train.train(whole)
    train_until(job, stop, monkeypatch)
    assert load_checkpoint(job.path)["step"] == stop // 4 * 4  # checkpoint_every is 4
    assert train.train(job) == rows == rows_of(job.log) == rows_of(whole.log)
    assert equal(load_checkpoint(whole.path), load_checkpoint(job.path))


def test_a_log_is_never_ahead_of_its_checkpoint_so_an_arm_never_starts_from_half_a_base(fresh, monkeypatch):
    job = fresh("target")
    monkeypatch.setattr(train, "save", lambda job, tok, step, *_: 1 / 0 if step == job.steps else None)
    with pytest.raises(ZeroDivisionError):
        train.train(job)
    assert [row["step"] for row in job.rows()] == [0, 1, 2, 5, 10] and not job.finished()


def test_arms_see_the_same_tokens_in_total_and_the_curriculum_english_only_at_its_start(fresh):
    jobs = {name: fresh(name, steps=20) for name in ("target", "target+english", "curriculum")}
    rows = {name: train.train(job)[-1] for name, job in jobs.items()}
    job, within = jobs["target"], jobs["target"].settings.block_size
    tokens = job.steps * job.batch_size * within
    assert all(r["tokens_target"] + r.get("tokens_english", 0) == tokens for r in rows.values())
    assert "tokens_english" not in rows["target"]
    assert rows["target+english"]["tokens_english"] == pytest.approx(0.2 * tokens, abs=within)
    assert rows["curriculum"]["tokens_english"] == pytest.approx(0.02 * tokens, abs=within)


def test_placement_arms_see_the_same_english_in_total(sources):
    for name in ("curriculum", "middle", "last", "spread"):
        curriculum, mixture = Curriculum(train.ARMS[name].curriculum), Mixture(sources, 64, seed=1)
        rows = [mixture.counts(step, 16, curriculum.weights(step, 1000))["english"] for step in range(1000)]
        assert sum(rows) == pytest.approx(320, abs=2)  # 2% of 16,000


def test_ema_at_every_step_and_the_low_learning_rate_are_one_run(fresh):
    ema, low = fresh("ema"), fresh("low-lr")
    train.train(ema)
    train.train(low)
    a, b, base = weights(ema.path), weights(low.path), weights(ema.start)
    assert max((a[k] - b[k]).abs().max().item() for k in a) < 1e-6
    assert max((a[k] - base[k]).abs().max().item() for k in a) > 1e-4  # so both have moved


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulated_micro_batches_are_the_whole_batch(fresh, parts):
    whole = train.train(fresh("target+english"))[-1]
    cut = train.train(fresh("target+english", accumulate=parts))[-1]
    assert cut["train_loss"] == pytest.approx(whole["train_loss"], abs=1e-5)
    assert cut["shift_l2"] == pytest.approx(whole["shift_l2"], rel=1e-3)


def test_lora_trains_lora_alone_and_its_shift_is_that_of_the_merged_weights(smoke, fresh):
    job, base = fresh("lora-4"), weights(smoke[1] / "base.pt")
    job = dataclasses.replace(job, arm=dataclasses.replace(job.arm, trained=""))
    last, end = train.train(job)[-1], weights(job.path)
    assert all(torch.equal(end[k], base[k]) for k in base) and last["shift_l2"] > 0
    merged = model_from_checkpoint(load_checkpoint(job.path))
    assert bench.parameter_shift(merged, base)["shift_l2"] == pytest.approx(last["shift_l2"], rel=1e-4)


@pytest.mark.parametrize("arm, frozen", [("frozen-attention", ".attn."), ("frozen-blocks", ".h.")])
def test_frozen_parts_stay_as_they_were_and_the_rest_moves(smoke, fresh, arm, frozen):
    job, base = fresh(arm), weights(smoke[1] / "base.pt")
    train.train(job)
    for name, p in weights(job.path).items():
        assert torch.equal(p, base[name]) == (frozen in name), name


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(fresh, monkeypatch):
    job = fresh("target")
    train_until(job, 5, monkeypatch)
    good, ckpt = job.path.read_bytes(), load_checkpoint(job.path)
    ckpt["model"]["transformer.wpe.weight"] = ckpt["model"]["transformer.wpe.weight"] * float("nan")
    write_file(job.path, lambda file: torch.save(ckpt, file))  # its tensors are mapped from this file
    with pytest.raises(ValueError, match="no longer finite at step 5. Lower --lr .*target.pt"):
        train.train(job)
    job.path.write_bytes(good)
    assert train.train(job)[-1]["step"] == job.steps


def test_the_study_runs_end_to_end_and_leaves_its_files(study):
    path, out = study
    folder = path / "runs" / "smoke"
    for name in ("main/settings.json", "main/figure.png", "seed3000/base.pt", "seed3001/ema.pt"):
        assert (folder / name).stat().st_size > 0, name
    rows = rows_of(folder / "main/metrics.jsonl")
    pairs = {(arm, seed) for arm in train.STUDIES["main"].arms for seed in (3000, 3001)}
    assert {(row["arm"], row["seed"]) for row in rows} == pairs
    assert all(row["commit"] and "torch" in row["machine"] for row in rows)
    assert all(row["train_loss"] < row["train_loss_max"] for row in rows if row["step"] > 2)
    assert all(("train_loss" in row) == (row["step"] > 0) for row in rows)
    claims = re.findall(r"^\| (C\d) ", (folder / "main/report.md").read_text(), re.M)
    assert claims == ["C1", "C2", "C3", "C4", "C5", "C6"] and "report.md" in out
    assert all("nothing; next: python train.py" in x for x in (out, (folder / "main/report.md").read_text()))


def test_rerunning_a_finished_study_trains_nothing_and_the_report_is_a_function_of_the_log(study, call):
    path, folder = study[0], study[0] / "runs/smoke"
    before, names = times(folder, "seed*/*.pt"), ("main/report.md", "main/metrics.jsonl")
    text = [(folder / name).read_bytes() for name in names]
    assert call(path, "train.py", *SMOKE, "--seeds", "2")[0] == 0 and times(folder, "seed*/*.pt") == before
    assert call(path, "results/report.py", "runs/smoke/main")[0] == 0
    assert [(folder / name).read_bytes() for name in names] == text


def test_a_checkpoint_can_be_benchmarked_and_an_arm_run_from_a_given_base(study, call):
    path, _ = study
    code, out, err = call(path, "bench.py", "runs/smoke/seed3000/ema.pt")
    assert code == 0 and "copain" in out, err
    code, out, err = call(path, "train.py", *SMOKE, "--only", "low-lr", "--name", "one",
                          "--init", "runs/smoke/seed3001/base.pt")
    assert code == 0 and (path / "runs/one/seed3001/low-lr.pt").exists(), err
    assert not (path / "runs/one/seed3001/base.pt").exists()


def test_an_arm_of_ones_own_is_a_line_of_ARMS_and_its_name(study, call, monkeypatch):
    monkeypatch.setitem(train.ARMS, "mine", train.Arm("target=rest english=constant(0.1)"))
    code, out, err = call(study[0], "train.py", *SMOKE, "--seeds", "2", "--only", "mine")
    assert code == 0 and re.search(r"\| mine +\|", out) and re.search(r"\| target +\|", out), err
    assert "| mine against target" in (study[0] / "runs/smoke/main/report.md").read_text()
    monkeypatch.setattr(train, "OWN_ARMS", ["mine"])  # as if train.py had it when it was imported
    monkeypatch.chdir(study[0])
    two, three = (train.reported_jobs(train.parse_flags([*SMOKE, "--seeds", n])) for n in "23")
    assert "mine" in str(two) and "mine" not in str(three)  # else the report would leave out the third run
    monkeypatch.setitem(train.BASES, "odd", dict(n_embed=96))
    monkeypatch.setitem(train.SCHEDULES, "odd", dict(steps=5))
    monkeypatch.setattr(train, "SOURCES", train.SOURCES | dict(odd=("english", {"prosa": 1}), new=("fr", {})))
    for wrong in (dict(ema_alpha=1.5), dict(shadow=True), dict(lora_rank=-1), dict(lora_rank=1, l2=1.0),
                  dict(base="odd"), dict(schedule="odd"), dict(curriculum="target=rest odd=constant(0.2)"),
                  dict(curriculum="target=rest new=constant(0.2)")):  # before any training
        monkeypatch.setitem(train.ARMS, "mine", train.Arm(**{"curriculum": "target=rest"} | wrong))
        code, _, err = call(study[0], "train.py", *SMOKE, "--seeds", "2", "--only", "mine", "--name", "new")
        good = code == 2 and re.search("alpha 1.5|'mine'|'n_embd'|'steps'|'prose'|'fr'", err)
        assert good and not (study[0] / "runs/new").exists(), err


def test_arms_of_another_base_share_what_was_run(study, call):
    path, _ = study
    before = times(path / "runs/smoke", "seed*/*.pt")
    code, out, err = call(path, "train.py", *SMOKE, "--study", "languages", "--only", "seen-3,seen-3+english")
    assert code == 0 and "seen-3+english" in out and (path / "runs/smoke/seed3000/seen-3/base.pt").exists()
    assert before.items() <= times(path / "runs/smoke").items()


def test_a_base_below_its_gate_is_left_out_and_named_and_no_arm_of_it_is_trained(tmp_path, call, monkeypatch):
    monkeypatch.setitem(train.GATE, "cloze_english", 101.0)
    code, out, err = call(tmp_path, "train.py", *SMOKE, "--gate", "1", "--only", "target")
    assert code == 2 and re.search("3000 base reached .* on .*, its gate is .*nothing to lose", err), err
    assert not list(tmp_path.glob("runs/smoke/seed3000/target.*"))
    code, out, err = call(tmp_path, "train.py", *SMOKE, "--gate", "0", "--only", "target")
    assert code == 0, err


def test_every_setting_of_a_base_counts_for_its_pretraining_and_none_for_the_seed_of_its_run(monkeypatch):
    monkeypatch.setitem(train.BASES, "long", dict(base_steps=7, base_lr=0.5, base_batch_size=3))
    monkeypatch.setitem(train.ARMS, "long", train.Arm("target=rest", base="long"))
    s = train.Settings(name="x", seed=10)
    base = train.make_job(s, 2, "long").needs
    assert (base.steps, base.lr_until, base.lr, base.batch_size) == (7, 7, 0.5, 3)
    assert base.settings.seed == 12 and str(base.folder) == "runs/x/seed12/long"
    assert train.make_job(s, 2, "target").needs.steps == s.base_steps


def test_a_study_compares_its_own_arms_and_trains_each_once_after_the_one_it_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for claim in report.CLAIMS:
        assert set(claim.arms) <= set(train.STUDIES[claim.study].arms), claim.id
    for name, study in train.STUDIES.items():
        assert study.pairs and all(a in study.arms and b in study.arms for a, b in study.pairs)
        its_own = train.PRESETS.get(name, {"study": name})  # basque has sources of its own
        jobs = train.plan(train.Settings(**its_own | {"name": "x", "seeds": 2}))
        paths = [job.path for job in jobs]
        assert len({job.title for job in jobs}) == len(set(paths)) == len(jobs)
        assert all(paths.index(job.needs.path) < paths.index(job.path) for job in jobs if job.needs)
    assert train.STUDIES["scale"].x(train.Settings(n_embd=64))["target"] == 64  # x is of the settings


def test_corpora_are_made_anew_when_what_they_depend_on_changes(fresh):
    job = fresh("target")
    other = dataclasses.replace(job, settings=dataclasses.replace(job.settings, cognates=0.0))
    faster = dataclasses.replace(job, settings=dataclasses.replace(job.settings, lr=1.0))
    assert job.data != other.data and job.data == faster.data
    before = times(job.data)
    train.prepare(job)
    assert times(job.data) == before


def test_a_cpu_takes_the_laptop_preset_even_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert train.parse_flags([]).preset == "gpu" and train.parse_flags(["--device", "cpu"]).preset == "laptop"


def test_there_are_at_most_45_settings_and_help_tells_each_with_its_default(tmp_path, call):
    names = [f.name for f in dataclasses.fields(train.Settings)]
    code, out, _ = call(tmp_path, "train.py", "--help")
    assert code == 0 and len(names) <= 45 and all(f"--{name}" in out for name in names)
    assert out.count("(default") == len(names)
