"""Properties of the loop, the schedules, the files and the command line, on a run that takes a second."""
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

import bench
import train
from conftest import ROOT, SMOKE, equal, rows_of, stop_at, weights
from curriculum import Curriculum
from data import Mixture
from model import GPT, GPTConfig, load_checkpoint, model_from_checkpoint, save_checkpoint


@pytest.fixture(scope="module", autouse=True)
def running(smoke, tmp_path_factory):
    """A study of two long arms: (its folder, its process). It starts here, so that it has begun to train when a test
    needs it."""
    path = tmp_path_factory.mktemp("running")
    flags = [sys.executable, ROOT / "train.py", *SMOKE, "--init", smoke[1] / "base.pt", "--steps", "100000",
             "--checkpoint_every", "5", "--only", "target,ema"]
    process = subprocess.Popen(flags, cwd=path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                               start_new_session=True)
    yield path, process
    process.kill()  # if no test has stopped it


# ---------------------------------------------------------------------------------------------- schedule, optimizers
def test_the_learning_rate_warms_up_falls_along_a_cosine_and_stays_on_its_floor():
    s = train.Settings(name="x", steps=100, lr=1.0, warmup=0.1, lr_until=0.5, lr_floor=0.1)
    job = train.make_job(s, 0, "target")
    f = [train.lr_factor(step, job) for step in range(100)]
    assert f[0] == 0.1 and f[9] == f[10] == 1.0 and f[30] == pytest.approx(0.55) and f[50] == f[99] == pytest.approx(0.1)
    assert all(a <= b for a, b in zip(f[:10], f[1:10])) and all(a >= b for a, b in zip(f[10:], f[11:]))


def test_evaluation_is_dense_at_the_start_and_includes_both_ends():
    s = train.Settings(name="x", steps=1000, base_steps=2600)
    assert train.make_job(s, 0, "target").evaluate_at() == {0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000}
    assert {20, 50} <= train.make_job(s, 0, "ema-then-english").evaluate_at()
    assert train.make_job(s, 0, "base").evaluate_at() == {1300, 2600}


def test_weight_decay_is_on_matrices_only_and_muon_takes_the_blocks_matrices_of_the_base(tiny):
    s = train.Settings(name="x", dtype="float32")
    (adamw,) = train.make_optimizers(tiny, train.make_job(s, 0, "target"))
    for group in adamw.param_groups:
        assert all((p.dim() >= 2) == (group["weight_decay"] > 0) for p in group["params"])
    adamw, muon = train.make_optimizers(tiny, train.make_job(s, 0, "base"))
    of_muon = {id(p) for p in muon.param_groups[0]["params"]}
    assert of_muon == {id(p) for n, p in tiny.named_parameters() if ".h." in n and p.dim() == 2}
    assert not of_muon & {id(p) for g in adamw.param_groups for p in g["params"]}


@pytest.mark.parametrize("dtype, away", [("bfloat16", 0.002), ("float32", 0.05)])
def test_muon_in_stacks_is_torchs_muon_up_to_the_rounding_of_bfloat16(tiny, dtype, away):
    start = [p.detach() for n, p in tiny.named_parameters() if ".h." in n and p.dim() == 2]
    ours, theirs = ([p.clone().requires_grad_() for p in start] for _ in range(2))
    settings = dict(lr=0.1, weight_decay=0.5)
    stacked = train.StackedMuon([{"params": ours, "dtype": getattr(torch, dtype)}], **settings)
    optimizers = stacked, torch.optim.Muon(theirs, **settings)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for p, q in zip(ours, theirs):
            p.grad = q.grad = torch.randn(p.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
    for p, q, p0 in zip(ours, theirs, start):
        assert (p - q).norm() < away * (q - p0).norm()
    averages = [[x["momentum_buffer"] for x in o.state_dict()["state"].values()] for o in optimizers]
    assert all(torch.equal(a, b) for a, b in zip(*averages, strict=True))


# ---------------------------------------------------------------------------------------------------------- the loop
def test_the_same_seed_twice_gives_the_same_run(fresh):
    a, b = (fresh("target+english", copy) for copy in "ab")
    assert train.train(a) == train.train(b)
    assert equal(weights(a.path), weights(b.path))
    assert a.path.with_suffix(".jsonl").read_text() == b.path.with_suffix(".jsonl").read_text()


def test_evaluation_frequency_leaves_training_bit_identical(fresh, monkeypatch):
    a, b = (fresh("target", copy) for copy in "ab")
    train.train(a)
    monkeypatch.setattr(train.Job, "evaluate_at", lambda self: {0, self.steps})
    train.train(b)
    assert equal(weights(a.path), weights(b.path))


@pytest.mark.parametrize("arm", ["ema", "curriculum"])
@pytest.mark.parametrize("stop", [1, 5, 10])
def test_a_run_stopped_anywhere_and_resumed_equals_the_uninterrupted_one_bit_for_bit(fresh, whole, arm, stop):
    job, (rows, ckpt) = fresh(arm), whole[arm]
    part = train.train(job, stopping=stop_at(stop))
    assert len(part) < len(rows) and load_checkpoint(job.path)["step"] == stop
    assert train.train(job) == rows == rows_of(job.path.with_suffix(".jsonl"))
    assert equal(ckpt["model"], weights(job.path))


def test_a_study_that_is_interrupted_leaves_no_child_says_how_to_continue_and_continues(running):
    path, process = running
    arms, deadline = [path / f"runs/smoke/seed3000/{name}.pt" for name in ("target", "ema")], time.time() + 60
    while time.time() < deadline and not all(arm.exists() for arm in arms):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "to continue: python train.py --preset smoke" in err
    assert all(5 <= load_checkpoint(arm)["step"] < 100_000 for arm in arms)
    with pytest.raises(ProcessLookupError):  # raised once the last process of the group is gone
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def test_a_base_resumed_in_its_middle_equals_the_uninterrupted_one(smoke, tmp_path):
    s, folder = smoke
    shutil.copytree(folder / "data", tmp_path / "data")
    shutil.copy(folder / "tokenizer.json", tmp_path)
    base = dataclasses.replace(train.make_job(s, 0, "base"), folder=tmp_path)
    train.train(base, stopping=stop_at(3))
    train.train(base)
    assert equal(weights(folder / "base.pt"), weights(tmp_path / "base.pt"))


def test_arms_see_the_same_tokens_in_total_and_the_curriculum_english_only_at_its_start(fresh):
    jobs = {name: fresh(name, name, steps=20) for name in ("target", "target+english", "curriculum")}
    rows = {name: train.train(job)[-1] for name, job in jobs.items()}
    job = jobs["target"]
    tokens = job.steps * job.batch_size * job.settings.block_size
    assert all(r["tokens_target"] + r.get("tokens_english", 0) == tokens for r in rows.values())
    assert "tokens_english" not in rows["target"]
    assert rows["target+english"]["tokens_english"] == pytest.approx(0.2 * tokens, abs=job.settings.block_size)
    assert rows["curriculum"]["tokens_english"] == pytest.approx(0.02 * tokens, abs=job.settings.block_size)


def test_ema_at_every_step_and_the_low_learning_rate_are_one_run(fresh):
    ema, low = fresh("ema", "a"), fresh("low-lr", "b")
    train.train(ema)
    train.train(low)
    a, b = weights(ema.path), weights(low.path)
    assert max((a[k] - b[k]).abs().max().item() for k in a) < 1e-5


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulated_micro_batches_are_the_whole_batch(fresh, parts):
    whole = train.train(fresh("target+english", "whole"))[-1]
    cut = train.train(fresh("target+english", "cut", accumulate=parts))[-1]
    assert cut["train_loss"] == pytest.approx(whole["train_loss"], abs=1e-5)
    assert cut["shift_l2"] == pytest.approx(whole["shift_l2"], rel=1e-3)


def test_the_model_overfits_one_batch():
    torch.manual_seed(0)
    model, x = GPT(GPTConfig(20, 16, 2, 2, 32)), torch.randint(20, (4, 17))
    optimizers = train.make_optimizers(model, train.make_job(train.Settings(name="x", dtype="float32"), 0, "base"))
    for _ in range(150):
        loss = model(x[:, :-1], x[:, 1:])[1]
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert loss.item() < 0.05


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(fresh):
    job = fresh("target")
    train.train(job, stopping=stop_at(5))
    good, ckpt = job.path.read_bytes(), load_checkpoint(job.path)
    ckpt["model"]["transformer.wpe.weight"].fill_(float("nan"))
    save_checkpoint(job.path, ckpt)
    with pytest.raises(ValueError, match="became nan by step 6; .*target.pt"):
        train.train(job)
    job.path.write_bytes(good)
    assert train.train(job)[-1]["step"] == job.steps


def test_a_base_below_its_gate_is_named_with_the_number_and_an_arm_has_no_gate(monkeypatch):
    base = train.make_job(train.Settings(name="x"), 0, "base")
    row = {"gain": 21.2, "label_english": 99.0, "cloze_english": 99.0}
    monkeypatch.setattr(train.Job, "so_far", lambda self: {"rows": [row]})
    assert re.search("21.2 on gain.*25", train.gate(base))
    arm = train.make_job(train.Settings(name="x"), 0, "target")
    assert train.gate(arm) == ""  # another arm may go on from one that has lost the ability
    row["gain"] = 25.0
    assert train.gate(base) == ""


# ------------------------------------------------------------------------------------------------------ command line
def test_the_study_runs_end_to_end_and_leaves_its_files(study):
    path, out = study
    folder = path / "runs" / "smoke"
    for name in ("settings.json", "main/settings.json", "main/metrics.jsonl", "main/report.md", "main/summary.json",
                 "main/figure.png", "seed3000/base.pt", "seed3001/ema.pt", "seed3001/tokenizer.json"):
        assert (folder / name).stat().st_size > 0, name
    rows = rows_of(folder / "main/metrics.jsonl")
    assert {(r["arm"], r["seed"]) for r in rows} == {(arm, seed) for arm in train.STUDIES["main"].arms for seed in (3000, 3001)}
    claims = json.loads((folder / "main/summary.json").read_text())["claims"]
    assert [c["id"] for c in claims] == ["C1", "C2", "C3", "C4", "C5", "C6"]
    assert {c["verdict"] for c in claims} <= {"reproduced", "partly", "not reproduced", "inconclusive"}
    assert "mean nothing" in out and "mean nothing" in (folder / "main/report.md").read_text()
    assert all(c["id"] in out for c in claims) and "report.md" in out
    assert "try next: python train.py --preset smoke --study schedule" in out


def test_rerunning_a_finished_study_trains_nothing_and_the_report_is_a_pure_function_of_the_log(study, call):
    path, _ = study
    folder = path / "runs" / "smoke"
    before = {p: p.stat().st_mtime_ns for p in folder.glob("seed*/*.pt")}
    names = ("main/report.md", "main/summary.json", "main/metrics.jsonl")
    text = [(folder / n).read_bytes() for n in names]
    assert call(path, "train.py", *SMOKE, "--seeds", "2")[0] == 0
    assert {p: p.stat().st_mtime_ns for p in folder.glob("seed*/*.pt")} == before
    assert call(path, "bench.py", "--report", "runs/smoke/main")[0] == 0
    assert [(folder / n).read_bytes() for n in names] == text


def test_a_checkpoint_can_be_benchmarked_and_sampled_and_an_arm_run_from_a_given_base(study, call):
    path, _ = study
    code, out, err = call(path, "bench.py", "runs/smoke/seed3000/ema.pt")
    assert code == 0 and "copain" in out, err
    code, out, err = call(path, "bench.py", "runs/smoke/seed3000/ema.pt", "--sample", "--language", "english")
    assert code == 0 and out.strip(), err
    code, out, err = call(path, "train.py", *SMOKE, "--only", "low-lr", "--init", "runs/smoke/seed3001/base.pt",
                          "--name", "one")
    assert code == 0 and (path / "runs/one/seed3001/low-lr.pt").exists(), err
    assert not (path / "runs/one/seed3001/base.pt").exists()


def test_a_run_folder_of_other_settings_is_refused_and_left_as_it_was(study, call):
    path, _ = study
    before = (path / "runs/smoke/settings.json").read_text()
    code, _, err = call(path, "train.py", *SMOKE, "--lr", "0.001")
    assert code == 2 and "lr 0.004 there, 0.001 here" in err
    assert (path / "runs/smoke/settings.json").read_text() == before


def test_a_run_folder_of_other_corpora_or_rules_is_refused_and_one_of_other_code_gets_a_note(study, call, monkeypatch):
    path, _ = study
    before = (path / "runs/smoke/settings.json").read_text()
    monkeypatch.setattr(train, "code_version", lambda: "another")
    code, out, err = call(path, "train.py", *SMOKE, "--seeds", "2")
    assert code == 0 and "note: runs/smoke was begun with other code" in out, err
    (path / "runs/smoke/settings.json").write_text(before)
    monkeypatch.setitem(train.SOURCES, "one-more", ("target", dict(prose=1)))
    code, out, err = call(path, "train.py", *SMOKE, "--seeds", "2")
    assert code == 0, err
    (path / "runs/smoke/settings.json").write_text(before)
    monkeypatch.setitem(train.SOURCES, "target", ("target", dict(prose=1)))
    code, _, err = call(path, "train.py", *SMOKE, "--seeds", "2")
    assert code == 2 and "corpus target" in err and "choose another --name" in err
    assert (path / "runs/smoke/settings.json").read_text() == before


@pytest.mark.parametrize("changes, words", [
    (dict(base="smal"), "the base of an arm is 'smal'.*'small'"),
    (dict(schedule="papr"), "the schedule of an arm is 'papr'.*'paper'")])
def test_a_name_misspelled_in_a_table_is_refused_with_the_nearest(monkeypatch, changes, words):
    monkeypatch.setitem(train.ARMS, "mine", dataclasses.replace(train.ARMS["target"], **changes))
    with pytest.raises(ValueError, match=words):
        train.make_job(train.Settings(name="x"), 0, "mine")
    monkeypatch.setitem(train.STUDIES, "mine", train.Study("Why?", ["target", "curriculm"]))
    with pytest.raises(ValueError, match="an arm of study 'mine' is 'curriculm'.*'curriculum'"):
        train.STUDIES["mine"].check("mine")


@pytest.mark.parametrize("field, value", [
    ("pairs", (("target", "emma"),)), ("judge", ({"target": "emma"},)), ("line", ("emma",)), ("x", {"emma": 1})])
def test_a_name_misspelled_in_a_field_of_a_study_is_refused_before_anything_is_trained(monkeypatch, tmp_path, field, value):
    monkeypatch.chdir(tmp_path)
    study = train.Study("Why?", ["target", "ema"])
    s = train.Settings(name="x", study="mine", device="cpu", dtype="float32")
    monkeypatch.setitem(train.STUDIES, "mine", study)
    assert train.plan(s)
    monkeypatch.setitem(train.STUDIES, "mine", dataclasses.replace(study, **{field: value}))
    with pytest.raises(ValueError, match="an arm of study 'mine' is 'emma'.*'ema'"):
        train.plan(s)
    monkeypatch.setitem(train.STUDIES, "mine", dataclasses.replace(study, x="cognats"))
    with pytest.raises(ValueError, match="x of study 'mine' is 'cognats'.*'cognates'"):
        train.plan(s)


@pytest.mark.parametrize("values", [dict(ema_alpha=1.8), dict(ema_alpha=0.9, ema_every=0), dict(lora_rank=-1),
                                    dict(shadow=True), dict(l2=-1.0), dict(hold=2.0)])
def test_a_value_that_no_arm_can_have_is_refused_before_anything_is_trained(monkeypatch, tmp_path, values):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(train.ARMS, "ema", dataclasses.replace(train.ARMS["target"], **values))
    with pytest.raises(ValueError, match="arm 'ema': expected"):
        train.plan(train.Settings(name="x", device="cpu", dtype="float32"))


def test_a_pattern_that_finds_no_parameter_to_train_is_named(fresh):
    job = fresh("target")
    with pytest.raises(ValueError, match="no parameter has a name in which 'nothing' is found"):
        train.train(dataclasses.replace(job, arm=dataclasses.replace(job.arm, trained="nothing")))


def test_changed_code_has_another_version_with_and_without_git(monkeypatch):
    found = []
    for commit in ("abc", "abc-dirty", ""):
        monkeypatch.setattr(train.subprocess, "run", lambda *_, said=commit, **__: SimpleNamespace(stdout=said))
        found.append(train.code_version.__wrapped__())
    assert found[0] == "abc" and found[1].startswith("abc-dirty-") and found[2].startswith("unknown-")


@pytest.mark.parametrize("script, flags, words", [
    ("data.py", [], "--- english, lists"), ("bench.py", ["--show"], "--- max_integer_in_list"),
    ("model.py", [], "124,439,808"), ("train.py", ["--help"], "--seeds")])
def test_every_file_has_something_to_show(tmp_path, script, flags, words, call):
    code, out, err = call(tmp_path, script, *flags)
    assert code == 0 and words in out, err


def test_a_report_of_nothing_says_so(tmp_path, call):
    code, _, err = call(tmp_path, "bench.py", "--report", "runs/none")
    assert code == 2 and "runs/none" in err and len(err.splitlines()) == 1


# ----------------------------------------------------------------------------------------------------------- studies
def test_an_arm_is_compared_with_the_one_that_lacks_its_english_or_its_ema_alone():
    arms = ["target", "target+english", "lora-1", "target-at-40", "curriculum-at-40", "ema-at-40"]
    assert train.default_pairs(arms) == [("target+english", "target"), ("lora-1", "target"),
                                         ("curriculum-at-40", "target-at-40"), ("ema-at-40", "target-at-40")]


def test_without_git_a_run_records_that_its_commit_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert train.code_version.__wrapped__().startswith("unknown-")


def test_a_cpu_takes_the_laptop_preset_even_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert train.parse_flags([]).preset == "gpu" and train.parse_flags(["--device", "cpu"]).preset == "laptop"


def test_an_arm_of_ones_own_is_compared_in_a_study_that_names_pairs(smoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    s = dataclasses.replace(smoke[0], study="averaging", only="mine")
    monkeypatch.setitem(train.ARMS, "mine", train.Arm("target=rest english=constant(0.1)"))
    (tmp_path / "runs/smoke").mkdir(parents=True)
    pairs = json.loads((train.write_study(s, {}, []) / "settings.json").read_text())["pairs"]
    assert ["mine", "target"] in pairs and pairs[-4:] == [*map(list, train.STUDIES["averaging"].pairs)]
    assert len({tuple(pair) for pair in pairs}) == len(pairs)


def test_a_rerun_with_fewer_runs_keeps_the_others_and_what_was_left_out_and_mends_a_damaged_record(smoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/smoke").mkdir(parents=True)
    record = train.write_study(dataclasses.replace(smoke[0], seeds=3), {}, ["the base of seed 3002"]) / "settings.json"
    train.write_study(dataclasses.replace(smoke[0], seeds=1), {}, [])
    again = json.loads(record.read_text())
    assert again["settings"]["seeds"] == 3 and again["left_out"] == ["the base of seed 3002"]
    record.write_text('{"settings": ')
    train.write_study(dataclasses.replace(smoke[0], seeds=1), {}, [])
    assert json.loads(record.read_text())["settings"]["seeds"] == 1


def test_an_arm_that_first_fills_adams_moments_then_has_the_learning_rates_of_target():
    filled, target = (train.make_job(train.Settings(name="x"), 0, name) for name in ("filled-moments", "target"))
    assert [train.lr_factor(step, filled) for step in range(40)] == [0.0] * 40
    assert [train.lr_factor(step + 40, filled) for step in range(960)] == [train.lr_factor(step, target) for step in range(960)]


def test_every_setting_of_a_base_counts_for_its_pretraining_and_none_for_the_seed_of_its_run(monkeypatch):
    monkeypatch.setitem(train.BASES, "long", dict(base_steps=7, base_lr=0.5, base_batch_size=3))
    monkeypatch.setitem(train.ARMS, "long", train.Arm("target=rest", base="long"))
    s = train.Settings(name="x", seed=10)
    base = train.make_job(s, 2, "long").needs
    assert (base.steps, base.lr_until, base.lr, base.batch_size) == (7, 7, 0.5, 3)
    assert base.settings.seed == 12 and str(base.folder) == "runs/x/seed12/long"
    assert train.make_job(s, 2, "target").needs.steps == s.base_steps


def test_every_study_names_arms_and_bases_that_exist_and_pairs_of_its_own_arms():
    for study in train.STUDIES.values():
        pairs = [*train.default_pairs(study.arms), *study.pairs]
        assert pairs and all(a in study.arms and b in study.arms for a, b in pairs)
        for name in study.arms:
            assert train.ARMS[name].base in train.BASES and train.ARMS[name].start in {"", *train.ARMS}
    claims = {(claim.study, arm) for claim in bench.CLAIMS for arm in claim.arms}
    assert all(arm in train.STUDIES[of].arms for of, arm in claims)


def test_no_two_jobs_of_a_study_have_one_title_and_each_comes_after_the_one_it_needs():
    for name in train.STUDIES:
        jobs = train.plan(train.Settings(name="x", study=name, seeds=2))
        paths = [job.path for job in jobs]
        assert len({job.title for job in jobs}) == len(set(paths)) == len(jobs)
        assert all(paths.index(job.needs.path) < paths.index(job.path) for job in jobs if job.needs)


def test_placement_arms_see_the_same_english_in_total(smoke, sources):
    totals = []
    for name in ("curriculum", "middle", "last", "spread"):
        curriculum, mixture = Curriculum(train.ARMS[name].curriculum), Mixture(sources, 64, seed=1)
        totals.append(sum(mixture.counts(step, 16, curriculum.weights(step, 1000))["english"] for step in range(1000)))
    assert totals == pytest.approx([320] * 4, abs=2)  # 2% of 16,000 rows


def test_lora_trains_lora_alone_and_its_shift_is_that_of_the_merged_weights(smoke, fresh):
    job, base = fresh("lora-4"), weights(smoke[1] / "base.pt")
    last, end = train.train(job)[-1], None
    end = weights(job.path)
    assert all(torch.equal(end[k], base[k]) for k in base) and last["shift_l2"] > 0
    merged = model_from_checkpoint(load_checkpoint(job.path))
    assert bench.parameter_shift(merged, base)["shift_l2"] == pytest.approx(last["shift_l2"], rel=1e-4)


@pytest.mark.parametrize("arm, frozen", [("frozen-attention", ".attn."), ("frozen-blocks", ".h.")])
def test_frozen_parts_stay_as_they_were_and_the_rest_moves(smoke, fresh, arm, frozen):
    job, base = fresh(arm), weights(smoke[1] / "base.pt")
    train.train(job)
    for name, p in weights(job.path).items():
        assert torch.equal(p, base[name]) == (frozen in name), name


def test_the_l2_penalty_pulls_back_by_its_share_and_a_full_pull_is_the_base(tiny):
    before = {n: p.detach().clone() for n, p in tiny.named_parameters()}
    with torch.no_grad():
        for p in tiny.parameters():
            p.add_(1.0)
    train.pull_back(tiny, before, 0.25)
    assert all(torch.allclose(p, before[n] + 0.75) for n, p in tiny.named_parameters())
    train.pull_back(tiny, before, 1.0)
    assert all(torch.equal(p, before[n]) for n, p in tiny.named_parameters())


def test_a_shadow_average_leaves_the_training_of_its_arm_as_it_was(fresh):
    plain, shadow = fresh("target", "a"), fresh("shadow-ema", "b")
    rows = train.train(plain)[-1], train.train(shadow)[-1]
    assert equal(weights(plain.path), weights(shadow.path)) and rows[0]["ppl_target"] != rows[1]["ppl_target"]


def test_a_study_with_other_bases_and_one_that_goes_on_from_arms_share_what_was_run(study, call):
    path, _ = study
    before = {p: p.stat().st_mtime_ns for p in (path / "runs/smoke").glob("seed*/*.pt")}
    flags = [*SMOKE, "--study", "languages", "--only", "near,near+english"]
    code, out, err = call(path, "train.py", *flags)
    assert code == 0 and (path / "runs/smoke/seed3000/near/base.pt").exists() and "near+english" in out, err
    assert "C8" not in out and "**not run** | missing: seen-0.1" in (path / "runs/smoke/languages/report.md").read_text()
    code, out, err = call(path, "train.py", *SMOKE, "--study", "relearn", "--only", "ema-then-english")
    rows, ended = rows_of(path / "runs/smoke/relearn/metrics.jsonl"), rows_of(path / "runs/smoke/seed3000/ema.jsonl")[-1]
    assert code == 0 and rows[0]["copain"] == ended["copain"] and rows[-1]["step"] == 50, err
    assert {p: p.stat().st_mtime_ns for p in before} == before
    code, out, err = call(path, "bench.py", "--findings", "runs/smoke")
    assert code == 0 and "| C8 |" in out and "relearn" in out, err


def test_a_base_below_its_gate_is_left_out_and_named_while_the_others_go_on(study, call, monkeypatch):
    path, _ = study
    monkeypatch.setattr(train, "gate", lambda base: "the base of seed 3000 ..." if base.settings.seed == 3000 else "")
    code, out, err = call(path, "train.py", *SMOKE, "--seeds", "2")
    assert code == 0 and "left out: the base of seed 3000" in out, err
    assert "Left out: the base of seed 3000" in (path / "runs/smoke/main/report.md").read_text()
    monkeypatch.setattr(train, "gate", lambda base: f"the base of seed {base.settings.seed} ...")
    code, _, err = call(path, "train.py", *SMOKE, "--seeds", "2")
    assert code == 2 and "seed 3000 ...; the base of seed 3001" in err


def test_no_arm_is_trained_from_a_base_that_its_gate_leaves_out(tmp_path, call):
    code, out, err = call(tmp_path, "train.py", *SMOKE, "--only", "target", "--gate_cloze", "100")
    assert code == 2 and "on cloze_english, its gate is 100:" in err, err
    assert not list(tmp_path.glob("runs/smoke/seed3000/target.*t"))


def test_the_record_of_a_run_holds_no_file_of_the_folder_that_it_was_started_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text("something")
    (tmp_path / "run").mkdir()
    record = train.open_run(train.Settings(name="x"), tmp_path / "run")
    assert not [key for key in record["settings"] if key.startswith("contents of")]


def test_a_job_whose_log_is_empty_or_vanishes_is_named_without_a_crash(smoke, fresh):
    job = fresh("target")
    job.log.write_text("")
    assert job.obstacle() == "it ended without a word"
    job.log.unlink()
    assert job.obstacle() == ""


@pytest.mark.parametrize("name, content, words", [
    ("metrics.jsonl", '{"arm": "tar', "damaged"), ("settings.json", "{", "damaged"), ("metrics.jsonl", "", "is not what train.py wrote"),
    ("settings.json", None, "settings.json")])
def test_a_half_written_or_missing_log_is_named_and_nothing_is_overwritten(study, call, tmp_path, name, content, words):
    shutil.copytree(study[0] / "runs/smoke/main", tmp_path / "main")
    file = tmp_path / "main" / name
    file.write_text(content) if content is not None else file.unlink()
    report = (tmp_path / "main/report.md").read_bytes()
    code, _, err = call(tmp_path, "bench.py", "--report", "main")
    assert code == 2 and len(err.splitlines()) == 1 and re.search(words, err), err
    assert (tmp_path / "main/report.md").read_bytes() == report


def test_a_held_rate_changes_nothing_but_the_moments(fresh):
    job = dataclasses.replace(fresh("target"), hold=6, warmup=2, lr_until=10)
    assert [train.lr_factor(step, job) for step in range(9)][:6] == [0.0] * 6 and train.lr_factor(7, job) == 1.0
    rows = train.train(job)
    assert [row["shift_l2"] for row in rows if row["step"] <= 5] == [0.0] * 4 and rows[-1]["shift_l2"] > 0
