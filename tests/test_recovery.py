"""What happens to files and processes when something goes wrong. tests/soak.py does the same at random and at length."""
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys

import pytest

import bench
import train
from conftest import SMOKE, arm_in, checksum, rows_of, stop_at
from data import Tokenizer, lock
from model import load_checkpoint, previous, save_checkpoint


@pytest.fixture(scope="module")
def stopped_once(smoke, tmp_path_factory):
    s, folder = smoke
    path = shutil.copytree(folder, tmp_path_factory.mktemp("stopped") / "run")
    train.train(arm_in(path, s, "ema"), stopping=stop_at(11))
    return s, path


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """The job of an arm that was stopped at step 11 and has a checkpoint of step 10 before it."""
    s, folder = stopped_once
    return arm_in(shutil.copytree(folder, tmp_path / "run"), s, "ema")


# ------------------------------------------------------------------------------------------------------- checkpoints
@pytest.mark.parametrize("harm", ["truncated", "emptied", "flipped", "removed"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_leads_to_the_same_end(stopped, whole, harm, capsys):
    path = stopped.path
    data = bytearray(path.read_bytes())
    assert load_checkpoint(previous(path))["step"] == 10 and load_checkpoint(path)["step"] == 11
    if harm == "removed":
        path.unlink()
    else:
        start = data.find(load_checkpoint(path)["model"]["transformer.wpe.weight"].numpy().tobytes()[:64])
        data[start + 5] ^= 4
        path.write_bytes({"truncated": data[:len(data) // 2], "emptied": b"", "flipped": data}[harm])
    rows = train.train(stopped)
    assert harm == "removed" or "ema.pt" in capsys.readouterr().err
    assert rows == whole["ema"][0] and checksum(load_checkpoint(path)) == checksum(whole["ema"][1])


@pytest.mark.parametrize("place", [0.01, 0.2, 0.4, 0.6, 0.8, 0.95])
def test_a_flipped_bit_is_refused_or_of_no_effect(stopped, place):
    data, good = bytearray(stopped.path.read_bytes()), checksum(load_checkpoint(stopped.path))
    data[int(place * len(data))] ^= 16
    stopped.path.write_bytes(data)
    try:
        assert checksum(load_checkpoint(stopped.path)) == good
    except ValueError as e:
        assert "ema.pt" in str(e)


def test_a_checkpoint_holds_settings_tokenizer_and_code_version(stopped):
    ckpt = load_checkpoint(stopped.path)
    assert ckpt["settings"]["steps"] == 12 and json.loads(ckpt["tokenizer"]) and ckpt["code"] == train.code_version()


def test_a_checkpoint_of_other_settings_is_refused_with_the_fields_that_differ(stopped):
    before = stopped.path.read_bytes()
    for other, words in ((dict(lr=0.1), "lr 0.004 there, 0.1 here"),
                         (dict(weight_decay=0.5), "weight_decay 0.1 there, 0.5")):
        with pytest.raises(ValueError, match=words):
            train.train(dataclasses.replace(stopped, settings=dataclasses.replace(stopped.settings, **other)))
    assert stopped.path.read_bytes() == before


def test_a_full_disk_gives_one_line_and_leaves_the_checkpoint_before_it_usable(stopped):
    ckpt, before = load_checkpoint(stopped.path), stopped.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # no file may grow beyond this, as on a full disk
    try:
        with pytest.raises(OSError, match="cannot write .*ema.pt.*still there"):
            save_checkpoint(stopped.path, ckpt)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stopped.path.read_bytes() == before and not list(stopped.folder.glob("ema*.tmp"))


def test_a_folder_that_cannot_be_written_gives_one_line(tmp_path, call):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o500)
    if os.geteuid() == 0:  # root may write anywhere: a file in the place of the folder has the same effect
        (tmp_path / "runs").rmdir()
        (tmp_path / "runs").write_text("")
    code, _, err = call(tmp_path, "train.py", *SMOKE)
    assert code == 2 and err.startswith("error: ") and len(err.splitlines()) == 1


# ----------------------------------------------------------------------------------------------------- one owner
def test_a_second_process_on_a_run_folder_is_refused_and_the_lock_ends_with_its_owner(tmp_path, call):
    code = ("import pathlib, time, data\nwith data.lock(pathlib.Path('runs/smoke/.lock')) as mine:\n"
            "    print(mine, flush=True)\n    time.sleep(60)")
    (tmp_path / "runs/smoke").mkdir(parents=True)
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE)
    assert owner.stdout.readline() == b"True\n"
    code, _, err = call(tmp_path, "train.py", *SMOKE)
    assert code == 2 and "runs/smoke is in use by another process" in err and len(err.splitlines()) == 1
    assert [p.name for p in (tmp_path / "runs/smoke").iterdir()] == [".lock"]
    owner.kill()
    owner.wait()
    with lock(tmp_path / "runs/smoke/.lock") as mine:
        assert mine


# ----------------------------------------------------------------------------------------------------- interruptions
def test_a_stop_during_an_evaluation_keeps_its_row_and_the_run_goes_on_to_the_same_end(fresh, whole, monkeypatch):
    job, asked, evaluate = fresh("ema"), [], bench.evaluate

    def interrupted(*args, **kwargs):
        asked.append(True)  # as SIGTERM does while the evaluation runs
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(bench, "evaluate", interrupted)
    part = train.train(job, stopping=lambda: len(asked) == 3)
    assert [row["step"] for row in part] == [0, 1, 2] and load_checkpoint(job.path)["step"] == 2
    monkeypatch.setattr(bench, "evaluate", evaluate)
    assert train.train(job) == whole["ema"][0] and checksum(load_checkpoint(job.path)) == checksum(whole["ema"][1])


def test_a_run_without_its_last_row_is_not_finished_until_that_row_is_measured(fresh, whole):
    job = fresh("ema")
    train.train(job)
    ckpt = load_checkpoint(job.path)
    assert job.finished()
    save_checkpoint(job.path, ckpt | {"rows": ckpt["rows"][:-1]})
    assert job.so_far()["step"] == 12 and not job.finished()
    last = train.train(job)[-1]
    assert job.finished() and last["copain"] == whole["ema"][0][-1]["copain"] and last["shift_l2"] == whole["ema"][0][-1]["shift_l2"]


@pytest.fixture(scope="module", autouse=True)
def killing(study, tmp_path_factory):
    """A copy of the study whose arms `target` and `ema` of seed 3000 are gone, and its rerun, in which one process is
    killed and one crashes. It starts here, so that it runs beside the tests before those that need its end."""
    path = tmp_path_factory.mktemp("killed")
    shutil.copytree(study[0] / "runs", path / "runs")
    for name in ("target", "ema"):
        for file in (path / "runs/smoke/seed3000").glob(f"{name}.*"):
            file.unlink()
    (path / "failing.py").write_text(
        "import os, signal, train\n"
        "def prepare(job):\n"
        "    if job.name == 'ema': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    1 / 0\n"
        "def work(*args):\n"
        "    train.prepare = prepare\n"
        "    real(*args)\n"
        "real = train.work\n")
    command = ("import sys, train\nfrom failing import work\ntrain.work = work\ntrain.main(sys.argv[1:])\n")
    environment = os.environ | {"PYTHONPATH": f"{path}:{os.environ['PYTHONPATH']}"}
    process = subprocess.Popen([sys.executable, "-c", command, *SMOKE, "--seeds", "2"], cwd=path, env=environment,
                               text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    yield path, process
    process.kill()  # if no test has waited for it


@pytest.fixture(scope="module")
def killed(killing):
    """The end of `killing`: (its path, exit code, stderr)."""
    path, process = killing
    _, err = process.communicate()
    return path, process.returncode, err


def test_a_killed_or_crashed_arm_is_named_with_its_log_and_the_rest_is_reported(killed):
    path, code, err = killed
    last = err.splitlines()[-1]
    assert code == 1 and "Traceback" not in err, err
    assert "3000 ema: its process was killed, perhaps for memory, see runs/smoke/seed3000/ema.log" in last
    assert "3000 target: ZeroDivisionError: division by zero, see runs/smoke/seed3000/target.log" in last
    assert "Not averaged: seed 3000, which has not finished" in (path / "runs/smoke/main/report.md").read_text()


def test_a_rerun_does_only_what_is_missing_and_ends_as_if_nothing_had_happened(killed, study, call):
    path, *_ = killed
    before = {p: p.stat().st_mtime_ns for p in (path / "runs/smoke").glob("seed*/*.pt")}
    code, _, err = call(path, "train.py", *SMOKE, "--seeds", "2")
    assert code == 0 and {p: p.stat().st_mtime_ns for p in before} == before, err
    for name in ("target.jsonl", "ema.jsonl"):
        assert ((path / "runs/smoke/seed3000" / name).read_text()
                == (study[0] / "runs/smoke/seed3000" / name).read_text())


def test_with_one_seed_a_failed_arm_is_named_and_not_hidden_by_the_report_that_lacks_it(study, tmp_path, call):
    shutil.copytree(study[0] / "runs", tmp_path / "runs")
    folder = tmp_path / "runs/smoke"
    shutil.rmtree(folder / "main")
    for file in [*folder.glob("seed3000/*ema.pt"), *folder.glob("seed3000/ema.prev.pt")]:
        file.unlink()
    (folder / "seed3000/ema.pt.tmp").mkdir()  # where its checkpoint would be written first
    code, out, err = call(tmp_path, "train.py", *SMOKE)
    assert code == 1 and "3000 ema: " in err and "see runs/smoke/seed3000/ema.log" in err, err
    assert "C1" in out or "no report yet" in out


def test_a_lost_log_and_a_damaged_last_checkpoint_of_a_finished_study_come_back(study, tmp_path, call):
    shutil.copytree(study[0] / "runs", tmp_path / "runs")
    folder = tmp_path / "runs/smoke/seed3000"
    (folder / "ema.jsonl").unlink()
    shutil.copy(folder / "base.pt", previous(folder / "base.pt"))
    (folder / "base.pt").write_bytes(b"damaged")
    code, _, err = call(tmp_path, "train.py", *SMOKE, "--seeds", "2")
    assert code == 0 and "base.pt is damaged" in err
    log = "runs/smoke/main/metrics.jsonl"
    assert (tmp_path / log).read_text() == (study[0] / log).read_text()


# --------------------------------------------------------------------------------------------------- silent wrongness
def test_an_arm_that_was_run_is_not_taken_for_one_that_was_defined_anew_under_its_name(study, call, monkeypatch):
    monkeypatch.setitem(train.ARMS, "ema", dataclasses.replace(train.ARMS["ema"], ema_alpha=0.5))
    code, _, err = call(study[0], "train.py", *SMOKE, "--seeds", "2")
    assert code == 2 and "ema.pt was made with other settings: arm's ema_alpha 0.92 there, 0.5 here" in err


def test_an_old_run_goes_on_when_the_code_has_a_new_field_or_another_gate(fresh):
    job = fresh("target")
    train.train(job, stopping=stop_at(5))
    ckpt = load_checkpoint(job.path)
    del ckpt["settings"]["accumulate"], ckpt["job"]["arm"]["hold"]  # as if they had come later
    ckpt["settings"]["gate_gain"] = 12.0
    train.check_same(job, ckpt)
    ckpt["job"]["arm"]["l2"] = 2.0
    with pytest.raises(ValueError, match="arm's l2 2.0 there, 0.0 here: choose another name for the arm$"):
        train.check_same(job, ckpt)


def test_an_arm_that_was_run_is_not_taken_for_one_whose_schedule_has_changed_since(study, call, monkeypatch):
    monkeypatch.setitem(train.SCHEDULES, "", dict(lr_until=0.5))
    code, _, err = call(study[0], "train.py", *SMOKE, "--seeds", "2")
    assert code == 2 and "was made with other settings: lr_until 0.12 there, 0.5 here" in err


def test_data_of_a_base_that_was_defined_anew_are_written_again(tmp_path):
    job = dataclasses.replace(train.make_job(train.Settings(documents=200, cognates=0.8), 0, "base"), folder=tmp_path)
    train.prepare(job)
    written = {name: (tmp_path / "data" / name).read_bytes() for name in ("english_train.bin", "target_train.bin")}
    train.prepare(job)
    assert all((tmp_path / "data" / name).read_bytes() == content for name, content in written.items())
    train.prepare(dataclasses.replace(job, settings=dataclasses.replace(job.settings, cognates=0.0)))
    assert (tmp_path / "data/target_train.bin").read_bytes() != written["target_train.bin"]


def test_a_given_file_that_changed_is_not_mixed_with_what_was_run_on_the_old_one(tmp_path):
    (tmp_path / "task.jsonl").write_text("1")
    s = train.Settings(task=str(tmp_path / "task.jsonl"))
    (tmp_path / "run").mkdir()
    train.open_run(s, tmp_path / "run")
    (tmp_path / "run/x.pt").write_text("")
    (tmp_path / "task.jsonl").write_text("2")
    with pytest.raises(ValueError, match="contents of .*task.jsonl"):
        train.open_run(s, tmp_path / "run")


def test_a_command_that_was_refused_or_failed_before_its_first_checkpoint_does_not_burn_its_name(tmp_path, call):
    flags = ["--only", "base", "--name", "mine"]
    code, _, err = call(tmp_path, "train.py", *SMOKE, *flags, "--block_size", "20")
    assert code == 1 and "raise it" in err
    code, _, err = call(tmp_path, "train.py", *SMOKE, *flags, "--block_size", "64")
    assert code == 0, err


def test_rows_of_different_settings_or_of_an_edited_log_are_never_averaged(study, tmp_path, call, monkeypatch):
    shutil.copytree(study[0] / "runs", tmp_path / "runs")
    path = tmp_path / "runs/smoke/main/metrics.jsonl"
    good = path.read_text()
    path.write_text(good + good.splitlines()[-1])
    code, _, err = call(tmp_path, "bench.py", "--report", "runs/smoke/main")
    assert code == 2 and "metrics.jsonl is not what train.py wrote" in err and len(err.splitlines()) == 1
    monkeypatch.setitem(train.ARMS, "ema", dataclasses.replace(train.ARMS["ema"], ema_alpha=0.5))
    code, _, err = call(tmp_path, "train.py", *SMOKE, "--seeds", "2", "--only", "target")  # its report has all arms
    assert code == 2 and "ema.pt was made with other settings: arm's ema_alpha 0.92 there, 0.5 here" in err


def test_the_largest_loss_of_a_step_is_logged_beside_the_mean(study):
    rows = rows_of(study[0] / "runs/smoke/main/metrics.jsonl")
    assert all(r["train_loss"] < r["train_loss_max"] for r in rows if r["step"] > 2)
    assert all(r["train_loss"] is r["train_loss_max"] is None for r in rows if r["step"] == 0)


def test_a_leak_that_comes_into_the_data_of_a_run_is_found_at_the_next_start_unless_told_not_to_look(fresh):
    job = fresh("curriculum")
    tok = Tokenizer.from_json((job.folder / "tokenizer.json").read_text())
    item = bench.copain_items(job.settings.world(), job.settings.copain_items, seed=job.settings.bench_seed)[3]
    with open(job.folder / "data/english_train.bin", "ab") as f:
        f.write(tok.encode_documents([item.prompt]).tobytes())
    with pytest.raises(ValueError, match="benchmark leak.*'english'"):
        train.train(job)
    careless = dataclasses.replace(job, settings=dataclasses.replace(job.settings, leak_check=0))
    assert train.train(careless)[-1]["step"] == job.steps


def test_the_record_of_a_run_names_the_flags_that_decide_whether_it_is_deterministic(study):
    (machine,) = json.loads((study[0] / "runs/smoke/settings.json").read_text())["machines"]
    assert {"deterministic_algorithms", "float32_matmul_precision", "cudnn_deterministic"} <= set(machine)
