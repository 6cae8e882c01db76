"""No input leads to a traceback, a hang or a silently wrong result. Needs the package hypothesis; at length:

    FUZZ=2000 pytest tests/test_fuzz.py
"""
import json
import math
import os
import shutil

import pytest

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, strategies as st  # noqa: E402

import bench  # noqa: E402
import train  # noqa: E402
from curriculum import SHAPES, Curriculum  # noqa: E402
from data import SOURCES, Tokenizer, train_bpe  # noqa: E402
from conftest import checksum  # noqa: E402
from model import load_checkpoint, save_checkpoint  # noqa: E402

hypothesis.settings.register_profile("nanocpt", max_examples=int(os.environ.get("FUZZ", 30)), deadline=None,
                                     derandomize="FUZZ" not in os.environ,  # CI draws the same examples every time
                                     suppress_health_check=list(hypothesis.HealthCheck))
hypothesis.settings.load_profile("nanocpt")

numbers = st.one_of(st.integers(-3, 3), st.floats(-2, 2), st.sampled_from(["nan", "1e999", "x", "(0, 1)", "()", "-0.0", ""]))
shapes = st.builds(lambda name, args: f"{name}({', '.join(map(str, args))})", st.sampled_from([*SHAPES, "wave"]),
                   st.lists(numbers, max_size=5))
parts = st.builds("{}={}".format, st.sampled_from([*SOURCES, "x", ""]), st.one_of(st.just("rest"), shapes))
schedules = st.one_of(st.text(max_size=40), st.builds(" ".join, st.lists(parts, max_size=3)))


@given(schedules, st.integers(1, 30))
def test_a_schedule_is_refused_or_its_weights_are_a_mixture_at_every_step(text, steps):
    try:
        curriculum = Curriculum(text)
        curriculum.check(steps)
    except ValueError as e:
        assert str(e)
        return
    for step in range(steps):
        w = curriculum.weights(step, steps)
        assert math.isclose(sum(w.values()), 1, abs_tol=1e-8) and all(-1e-8 <= x <= 1 + 1e-8 for x in w.values())


values = st.one_of(st.integers(-5, 200).map(str), st.floats().map(str), st.text(max_size=8), schedules, st.sampled_from(
    [*train.ARMS, *train.STUDIES, *train.PRESETS, "SOV", "cpu", "float32", "3,4"]))


@given(st.dictionaries(st.sampled_from(sorted(train.Settings.__dataclass_fields__)), values, max_size=4))
def test_settings_are_refused_in_one_line_or_make_a_plan_that_can_be_run(flags):
    try:
        s = train.parse_flags([f"--{k}={v}" for k, v in flags.items()])
        if s.init or s.seeds > 50:
            return
        jobs = train.plan(s)
    except ValueError as e:
        assert str(e)
        return
    except SystemExit as e:
        assert e.code == 2
        return
    finally:
        train.ARMS.pop("mine", None)
    assert jobs and all(job.steps > 0 and math.isfinite(job.lr) for job in jobs)
    assert all(0 <= train.lr_factor(step, job) <= 1 for job in jobs for step in (0, 1, job.steps - 1))


@given(st.lists(st.text(max_size=60), max_size=5), st.text(max_size=100))
def test_any_tokenizer_gives_back_any_text(texts, text):
    tok = Tokenizer(train_bpe(texts, 300))
    assert tok.decode(tok.encode(text)) == text and tok.eot not in tok.encode(text)
    assert Tokenizer.from_json(tok.to_json()).encode(text) == tok.encode(text)


@pytest.fixture(scope="module")
def checkpoint(smoke, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "x.pt"
    ckpt = load_checkpoint(smoke[1] / "base.pt")
    save_checkpoint(path, ckpt)
    return path, path.read_bytes(), checksum(ckpt)


@given(st.floats(0, 1), st.binary(max_size=9), st.booleans())
def test_a_truncated_or_overwritten_checkpoint_is_refused_or_still_what_was_written(checkpoint, place, junk, cut):
    path, good, digest = checkpoint
    at = int(place * len(good))
    path.write_bytes(good[:at] + junk + (b"" if cut else good[at + len(junk):]))
    try:
        assert checksum(load_checkpoint(path)) == digest
    except ValueError as e:
        assert "x.pt" in str(e)


json_values = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
                           lambda x: st.one_of(st.lists(x, max_size=2), st.dictionaries(st.text(max_size=5), x, max_size=2)))


@given(st.data())
def test_a_log_with_any_row_changed_is_refused_or_reported(study, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("log")
    for name in ("settings.json", "metrics.jsonl"):
        shutil.copy(study[0] / "runs/smoke/main" / name, folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    n = data.draw(st.integers(0, len(lines) - 1))
    row = json.loads(lines[n])
    kind = data.draw(st.sampled_from(["drop", "change", "text", "cut", "remove"]))
    if kind in ("drop", "change"):
        key = data.draw(st.sampled_from(sorted(row)))
        row = {k: v for k, v in row.items() if k != key} | ({key: data.draw(json_values)} if kind == "change" else {})
    lines[n] = {"text": data.draw(st.text(max_size=20)), "cut": lines[n][:len(lines[n]) // 2],
                "remove": ""}.get(kind, json.dumps(row))
    (folder / "metrics.jsonl").write_text("\n".join(line for line in lines if line or kind != "remove"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "draw_figure", lambda *_: None)
        try:
            bench.report(folder)
        except ValueError as e:
            assert str(folder) in str(e)
            return
    assert "nan" not in (folder / "report.md").read_text().split("## Arms and settings")[0]
