"""Every study of results/: its question, its arms, the bases and the schedules that they use.

    python train.py --study placement --seeds 5     runs one; finished arms are not run again
    python -m results.studies                       lists them

It adds lines to ARMS, BASES, SCHEDULES and STUDIES of train.py. What comes out, results/report.py draws.
"""
from dataclasses import dataclass, field, replace
from itertools import chain

from train import ARMS, BASES, SCHEDULES, STUDIES, Arm, Settings, check_name, lr_factor, make_job, require

MAIN = ["target", "target+english", "curriculum", "ema"]
TARGET, REPLAY = ARMS["target"].curriculum, ARMS["target+english"].curriculum


# ------------------------------------------------------------------------------------------------------- arms
MORE_ARMS = {
    # what is replayed
    "english-prose":    Arm("target=rest english-prose=constant(0.2)"),
    "english-repeats":  Arm("target=rest english-repeats=constant(0.2)"),
    "english-patterns": Arm("target=rest english-patterns=constant(0.2)"),
    "other-rules":      Arm("target=rest other-rules=constant(0.2)"),
    "third-language":   Arm("target=rest third-language=constant(0.2)"),
    "third-patterns":   Arm("target=rest third-patterns=constant(0.2)"),
    "english-only":     Arm("english=rest"),
    # what is replayed on real text, where patterns are a source of their own
    "english+patterns": Arm("target=rest english=constant(0.1) patterns=constant(0.1)"),
    "patterns":         Arm("target=rest patterns=constant(0.2)"),
    "early-both":       Arm("target=rest english=window(0.1, 0, 0.1) patterns=window(0.1, 0, 0.1)"),
    # how much of it
    "english-1":  Arm("target=rest english=constant(0.01)"),
    "english-5":  Arm("target=rest english=constant(0.05)"),
    "english-50": Arm("target=rest english=constant(0.5)"),
    # when: the first three see as much English as the curriculum does
    "middle":   Arm("target=rest english=window(0.2, 0.45, 0.55)"),
    "last":     Arm("target=rest english=window(0.2, 0.9, 1)"),
    "spread":   Arm("target=rest english=constant(0.02)"),
    "first-5":  Arm("target=rest english=window(0.2, 0, 0.05)"),
    "first-20": Arm("target=rest english=window(0.2, 0, 0.2)"),
    "first-40": Arm("target=rest english=window(0.2, 0, 0.4)"),
    # averages of the weights, and learning rates without an average
    "low-lr":       Arm(TARGET, lr_scale=0.08),  # at ema_every=1 the same as `ema`, see ema.py
    "ema-0.8":      Arm(TARGET, ema_alpha=0.8),
    "ema-every-10": Arm(TARGET, ema_alpha=0.92, ema_every=10),
    "shadow-ema":   Arm(TARGET, ema_alpha=0.992, shadow=True),
    "flipped-ema":  Arm(TARGET, ema_alpha=-0.08),  # the sign of the authors' released code
    # what may move; for the rates of LoRA see search.md
    "lora-1":           Arm(TARGET, lora_rank=1, lr_scale=8.0, trained="lora_"),
    "lora-4":           Arm(TARGET, lora_rank=4, lr_scale=8.0, trained="lora_"),
    "lora-16":          Arm(TARGET, lora_rank=16, lr_scale=4.0, trained="lora_"),
    "lora-64":          Arm(TARGET, lora_rank=64, lr_scale=4.0, trained="lora_"),
    "lora-16+wte":      Arm(TARGET, lora_rank=16, trained="lora_|wte"),
    "l2-1":             Arm(TARGET, l2=1.0),
    "l2-10":            Arm(TARGET, l2=10.0),
    "frozen-attention": Arm(TARGET, trained=r"^(?!.*\.attn\.)"),  # all names without .attn. in them
    "frozen-blocks":    Arm(TARGET, trained=r"wte|wpe|ln_f"),
}
SCHEDULES |= {  # of the learning rate: what differs from main's, which is low from 15% of the steps on
    "at-40":    dict(warmup=0.01, lr_until=0.4, lr_floor=0.05),
    "paper":    dict(warmup=0.1, lr_until=1.0, lr_floor=0.033),
}
BASES |= {  # what differs from main's (0.3% of what it sees is target language; a tokenizer of English alone)
    "joint":    dict(tokenizer="joint", vocab_size=2048),  # every word of all languages is one token
    "seen-0":   dict(base_curriculum="english=rest"),
    "seen-0.1": dict(base_curriculum="english=rest target=constant(0.001)"),
    "seen-3":   dict(base_curriculum="english=rest target=constant(0.03)"),
    "seen-20":  dict(base_curriculum="english=rest target=constant(0.2)"),
    "small":    dict(n_embd=96),
    "large":    dict(n_embd=256),
}
for name in MAIN:
    for schedule in ("at-40", "paper"):
        MORE_ARMS[f"{name}-{schedule}"] = replace(ARMS[name], schedule=schedule)
    for scale in (0.2, 0.5, 2, 4):
        MORE_ARMS[f"{name}-lr-{scale}"] = replace(ARMS[name], lr_scale=scale)
        MORE_ARMS[f"joint-{name}-lr-{scale}"] = replace(ARMS[name], base="joint", lr_scale=scale)
    for base in ("small", "large", "joint"):
        MORE_ARMS[f"{base}-{name}"] = replace(ARMS[name], base=base)
for base in [name for name in BASES if name.startswith("seen")]:
    for rate, scale in (("", 1.0), ("-lr-0.1", 0.1)):  # much seen, a low rate: the paper's case
        MORE_ARMS[base + rate] = Arm(TARGET, base=base, lr_scale=scale)
        MORE_ARMS[f"{base}+english{rate}"] = Arm(REPLAY, base=base, lr_scale=scale)
taken = ARMS.keys() & MORE_ARMS.keys()
require(not taken, f"{', '.join(taken)}: an arm of train.py and one of results/studies.py have this name")
ARMS |= MORE_ARMS


# ---------------------------------------------------------------------------------------------------- studies
@dataclass(frozen=True)
class Study:
    """A question, the arms that answer it, and what its report shows besides the tables of every study."""
    question: str
    arms: list
    pairs: list = ()          # pairs of arms to compare
    judge: list = ()          # each {arm that a claim names: arm to put there} judges the claims once more
    judge_best: bool = False  # so does every arm at the rate of its lowest target perplexity
    figure: str = ""          # x label ("step", "target perplexity": no x needed); "": a row per arm
    x: object = lambda s: {}  # of Settings: {arm: its place along x}
    lines: dict = field(default_factory=dict)  # {name of a line of the figure: the arms that it joins}


def against(other, names):
    """Every arm of names paired with one other."""
    return [(name, other) for name in names if name != other]


def rates_after(s):
    """{arm: how much training is left when its English ends, as the sum of the rates, over the peak rate}."""
    jobs = [(make_job(s, 0, arm), until) for arm, until in AFTER.items()]
    return {job.name: sum(lr_factor(step, job) for step in range(job.steps * until // 100, job.steps))
            for job, until in jobs}


def in_place(*names):
    """{arm of main: the arm in its place}, in the order of MAIN."""
    return dict(zip(MAIN, names))


ENDS = ["", "-at-40", "-paper"]  # ends of names: schedules
RATES = ["-lr-0.2", "-lr-0.5", "", "-lr-2", "-lr-4"]  # and rates
BOTH = ("", "joint-")  # bases with the two tokenizers
RATE, RATE_OF = "rate, as a share of main's", {}
for rate, share in zip(RATES, (0.2, 0.5, 1, 2, 4)):
    RATE_OF |= {base + name + rate: share for base in BOTH for name in MAIN}
CONTENT = ("target target+english english-prose english-repeats english-patterns other-rules third-language "
           "third-patterns english-only").split()
DOSES = {"target": 0, "english-1": 1, "english-5": 5, "target+english": 20, "english-50": 50}
UNTIL = {"target+english": 100, "first-40": 40, "first-20": 20, "curriculum": 10, "first-5": 5, "target": 0}
AFTER = {arm + end: until for end in ENDS for arm, until in UNTIL.items() if arm + end in ARMS}  # % of steps
PLACES = [*AFTER, "middle", "last", "spread"]
AVERAGES = "target target+english ema low-lr ema-0.8 target-lr-0.2 ema-every-10 shadow-ema flipped-ema"
BASQUE = "target english+patterns early-both ema target+english patterns target-lr-0.2".split()
LIMITS = ("target target+english lora-1 lora-4 lora-16 lora-64 lora-16+wte l2-1 l2-10 frozen-attention "
          "frozen-blocks").split()
SEEN = [(f"{seen}+english", seen) for seen in ("seen-0", "seen-0.1", "target", "seen-3", "seen-20")]
SEEN.append(("seen-20+english-lr-0.1", "seen-20-lr-0.1"))
SIZES = ("small-", "", "large-")
STUDIES |= {
    "main": Study(
        "Does English in the mixture matter, and can a curriculum or an EMA replace it?",
        MAIN, pairs=[*against("target", MAIN), ("target+english", "ema")], figure="step"),
    "schedule": Study(
        "When does a short English curriculum work: must the rate have fallen when English ends?",
        [name + end for end in ENDS for name in MAIN],
        pairs=[(name + end, "target" + end) for end in ENDS for name in MAIN[1:]],
        judge=[in_place(*(name + end for name in MAIN)) for end in ENDS]),
    "learning-rate": Study(
        "How much does the learning rate decide?",
        [name + rate for name in MAIN for rate in RATES],
        pairs=[(name + rate, "target" + rate) for name in MAIN[1:] for rate in RATES],
        judge_best=True, figure=RATE, x=lambda s: RATE_OF,
        lines={name: [name + rate for rate in RATES] for name in MAIN}),
    "tokenizer": Study(
        "Does it matter whether the new language is spelled with English pieces or has tokens of its own?",
        [base + name + rate for base in BOTH for name in MAIN for rate in RATES[:3]],
        pairs=[(base + name + rate, base + "target" + rate)
               for base in BOTH for name in MAIN[1:] for rate in RATES[:3]],
        judge=[in_place(*(base + name + rate for name in MAIN)) for base in BOTH for rate in RATES[:3]],
        figure=RATE, x=lambda s: RATE_OF,
        lines={b + name: [b + name + rate for rate in RATES[:3]] for b in BOTH for name in MAIN[:2]}),
    "replay-content": Study(
        "What in English protects: its prose, or its patterns?", CONTENT, pairs=against("target", CONTENT)),
    "replay-dose": Study(
        "How much English is enough?", list(DOSES), pairs=against("target", DOSES),
        figure="English, % of the tokens", x=lambda s: DOSES, lines={"target+english": list(DOSES)}),
    "placement": Study(
        "English at another time, or in another window: how much training may follow it?",
        PLACES, pairs=[*against("target", PLACES), ("curriculum", "middle"), ("curriculum", "last"),
                       ("spread", "curriculum")],
        figure="peak-rate steps after English", x=rates_after,
        lines={f"schedule {end[1:] or 'of main'}": [arm + end for arm in UNTIL if arm + end in AFTER]
               for end in ENDS}),
    "averaging": Study(
        "Does an EMA of the weights do anything that a smaller learning rate does not?", AVERAGES.split(),
        pairs=[*against("target", AVERAGES.split()), ("ema", "low-lr"), ("ema-0.8", "target-lr-0.2"),
               ("ema-every-10", "low-lr")]),
    "constraints": Study(
        "Do weights that may not move far keep the ability, and what does it cost?", LIMITS,
        pairs=against("target", LIMITS), figure="target perplexity", lines={name: [name] for name in LIMITS}),
    "languages": Study(
        "Does English matter more, the less of the language the base has seen?",
        list(chain(*SEEN)), pairs=SEEN),
    "basque": Study(
        "Is in-context learning lost on real Basque text (--preset basque), and what in English protects?",
        BASQUE, pairs=[*against("target", BASQUE), ("english+patterns", "target+english")],
        judge=[in_place("target", "english+patterns", "early-both", "ema"),  # as in main: text and patterns
               in_place("target", "target+english"), in_place("target", "patterns")]),  # one of the two alone
    "scale": Study(
        "Do the findings hold for smaller and larger models?",
        [size + name for size in SIZES for name in MAIN],
        pairs=[(size + name, f"{size}target") for size in SIZES for name in MAIN[1:]],
        judge=[in_place(*(size + name for name in MAIN)) for size in SIZES],
        figure="channels (n_embd)",
        x=lambda s: {arm: make_job(s, 0, arm).settings.n_embd for arm in STUDIES["scale"].arms},
        lines={name: [size + name for size in SIZES] for name in MAIN}),
}
for name, study in STUDIES.items():
    judged = [chosen.values() for chosen in study.judge]
    for arm in chain(study.arms, study.x(Settings()), *study.pairs, *study.lines.values(), *judged):
        check_name(f"an arm of study {name!r}", arm, ARMS)


if __name__ == "__main__":
    for name, study in STUDIES.items():
        print(f"{name:15} {len(study.arms):2} arms  {study.question}")
