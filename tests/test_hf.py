"""Models of the package transformers: the benchmark on them, and agreement with lm-evaluation-harness."""
import json

import pytest
import torch

import bench
from bench import encode_item, read_choices, read_copain
from model import load_gpt2

transformers = pytest.importorskip("transformers")
TASKS = {"short": ["a cat", "the dog runs", "no"], "accents": ["año", "ñandú", "é"],
         "long": ["x " * 20, "y", "z z"]}
LISTS = [{"list": [30 + i, 7, 12 + i], "target": 30 + i} for i in range(9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny Llama and a tiny GPT-2, random both, their tokenizer, Copain and three tasks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    path = tmp_path_factory.mktemp("hf")
    for name, choices in TASKS.items():
        rows = [{"context": f"Question {i}: {name}?", "choices": choices, "label": i % 3} for i in range(9)]
        (path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (path / "max_integer_in_list.jsonl").write_text("\n".join(map(json.dumps, LISTS)))
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator([file.read_text() for file in path.glob("*.jsonl")], trainer)
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    torch.manual_seed(0)
    for name, model in (("llama", transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=310, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.5))),
            ("gpt2", transformers.GPT2LMHeadModel(transformers.GPT2Config(
                vocab_size=310, n_positions=256, n_embd=32, n_layer=2, n_head=2, initializer_range=0.5)))):
        model.save_pretrained(path / name)
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tok, bos_token="<s>", eos_token="</s>").save_pretrained(path / name)
    return path


def by_hand(model, tok, text, choice):
    """The log-probability of a choice after a text, from the model's own loss."""
    prompt = [tok.bos_token_id, *tok(text, add_special_tokens=False).input_ids]
    ids = torch.tensor([[tok.bos_token_id, *tok(f"{text} {choice}", add_special_tokens=False).input_ids]])
    labels = ids.clone()
    labels[:, :len(prompt)] = -100
    with torch.no_grad():
        return -model(ids, labels=labels).loss.item() * (ids.size(1) - len(prompt))


def test_a_model_of_another_family_is_scored_with_its_own_tokenizer(folder, call):
    files = [word for name in TASKS for word in ("--task", f"{name}.jsonl")]
    code, out, err = call(folder, "bench.py", "--hf", "llama", "--copain", "max_integer_in_list.jsonl",
                          "--shots", "1", *files)
    assert code == 0, err
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder / "llama").eval()
    tok = transformers.AutoTokenizer.from_pretrained(folder / "llama")
    for name in TASKS:
        items = read_choices(folder / f"{name}.jsonl", 1)
        scores = [[by_hand(reference, tok, item.text(), choice) for choice in item.choices] for item in items]
        right = [item.answer == item.choices[some.index(max(some))] for item, some in zip(items, scores)]
        assert f"\n{name + ' acc':32} {100 * sum(right) / 9:8.2f}\n" in out
    model, items = bench.HFModel(folder / "llama"), read_copain(folder / "max_integer_in_list.jsonl", 1)
    ids = torch.tensor([encode_item(model, items[0])[0]])
    said = reference.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.size(1):].tolist()
    ended = [i for i in said if i in model.line_ends()]
    (answer,) = bench.greedy_answers(model, model, ids.tolist(), 3)
    assert answer == (tok.decode(said[:said.index(ended[0])]).strip() if ended else None)
    assert model.decode(model.encode("a b\nñ")) == "a b\nñ" and set(model.encode("\n")) <= model.line_ends()


def test_a_folder_that_transformers_cannot_load_and_no_files_get_one_line(folder, call):
    for flags, words in ((("--hf", "none", "--task", "short.jsonl"), "none cannot be loaded"),
                         (("--hf", "llama"), "--hf needs benchmark files")):
        code, _, err = call(folder, "bench.py", *flags)
        assert code == 2 and words in err and len(err.splitlines()) == 1, err


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_log_probabilities_are_those_of_lm_evaluation_harness(folder, kind, name):
    pytest.importorskip("lm_eval.models.huggingface", exc_type=ImportError)  # it needs accelerate, too
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    foreign = bench.HFModel(folder / kind)
    ours = load_gpt2(folder / kind) if kind == "gpt2" else foreign
    harness = HFLM(pretrained=foreign.model, tokenizer=foreign.tok, add_bos_token=True, device="cpu")
    items = read_choices(folder / f"{name}.jsonl", 1)
    found = bench.choice_logprobs(ours, *zip(*[encode_item(foreign, item) for item in items]))
    asked = [Instance("loglikelihood", {}, (item.text(), f" {choice}"), 0)
             for item in items for choice in item.choices]
    theirs = [score for score, _ in harness.loglikelihood(asked, disable_tqdm=True)]
    assert [x for some in found for x in some] == pytest.approx(theirs, abs=1e-3)
