"""GPT-2 in one file: the model, LoRA, checkpoints, and the published GPT-2 files in and out.

The decoder of Radford et al. 2019: learned positions, LayerNorm before each sublayer, GELU (tanh form), input
and output embeddings tied. Token ids go in, logits and a loss come out. The toy GPT of the studies and the
published 124M are the same class at two sizes, with the published parameter names.

    python model.py          # counts the parameters of the 124M shape, samples from a small untrained model
    python model.py runs/eu/seed3000/target.pt --export eu-gpt2       # in the published format

Shape letters, here and in every other file: B batch rows, T tokens in a row, C channels (n_embd), nh heads,
hs = C / nh channels of a head, V vocabulary.
"""
import argparse
import contextlib
import copy
import errno
import json
import math
import os
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    """The shape of a GPT. The defaults are GPT-2's 124M. Raises ValueError for impossible sizes."""
    vocab_size: int = 50257
    block_size: int = 1024   # longest context T
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    bias: bool = True        # biases in Linear and LayerNorm; GPT-2 has them

    def __post_init__(self):
        if min(self.vocab_size, self.block_size, self.n_layer, self.n_head, self.n_embd) < 1:
            raise ValueError(f"{self}: every size must be 1 or more")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}: "
                             "every head takes an equal share of the channels")


def causal_attention(q, k, v):
    """softmax(q k^T / sqrt(hs) + causal mask) v for q, k, v of shape (B, nh, T, hs); returns that shape."""
    T, hs = q.shape[-2:]
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or T > 256:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    # torch's bfloat16 kernel for CPUs is slow at short rows: there the formula is written out
    future = torch.full((T, T), float("-inf"), dtype=q.dtype).triu(1)
    return ((q @ k.mT) / math.sqrt(hs) + future).softmax(dim=-1) @ v      # (B, nh, T, T) @ (B, nh, T, hs)


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
                   for part in self.c_attn(x).split(C, dim=2))                # (B, T, C) -> (B, nh, T, hs)
        y = causal_attention(q, k, v).transpose(1, 2).reshape(B, T, C)        # (B, nh, T, hs) -> (B, T, C)
        return self.c_proj(y)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))          # C -> 4C -> C channels


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """A GPT-2 of any size. Its initial weights come from torch's global generator: seed it first."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=nn.Embedding(config.block_size, config.n_embd),
            h=nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            ln_f=nn.LayerNorm(config.n_embd, bias=config.bias),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight  # tied: one tensor under two names
        for name, p in self.named_parameters():
            if p.dim() == 2:
                # GPT-2 shrinks the layers that write into the residual stream, of which there are 2 * n_layer
                std = 0.02 / math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 0.02
                nn.init.normal_(p, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, idx, targets=None):
        """idx (B, T) holds token ids, T <= block_size. With targets (B, T), -1 not counted: the logits
        (B, T, V) and the mean cross-entropy in nats. Without: logits (B, V) after the last token, None."""
        T, V = idx.size(1), self.config.vocab_size
        if T > self.config.block_size:
            raise ValueError(f"a row of {T} tokens does not fit into block_size={self.config.block_size}")
        x = self.transformer.wte(idx) + self.transformer.wpe.weight[:T]       # (B, T, C) + (T, C)
        for block in self.transformer.h:
            x = block(x)
        x = self.transformer.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, -1]), None                               # (B, V)
        # odd numbers of columns make matrix products slow: impossible tokens fill up to a multiple of 32
        fill = -V % 32
        impossible = F.pad(x.new_zeros(V), (0, fill), value=float("-inf"))
        logits = F.linear(x, F.pad(self.lm_head.weight, (0, 0, 0, fill)), impossible)  # (B, T, V + fill)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-1)
        return logits[..., :V], loss

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, generator=None):
        """Appends max_new_tokens sampled tokens to idx (B, T): (B, T + max_new_tokens). Temperature 0 takes
        the likeliest token. A context longer than block_size is cut from the left."""
        for _ in range(max_new_tokens):
            logits = self(idx[:, -self.config.block_size:])[0].float()        # (B, V)
            if temperature == 0:
                following = logits.argmax(-1, keepdim=True)
            else:
                following = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
            idx = torch.cat((idx, following), dim=1)
        return idx

    def num_params(self):
        """Number of weights, the tied embedding counted once."""
        return sum(p.numel() for p in self.parameters())


class LoRALinear(nn.Module):
    """A Linear whose weight W acts as W + B A (Hu et al. 2021). A (rank, in) is random, B (out, rank) zero:
    at first this changes nothing. The parameters keep their names; lora_A and lora_B join them."""

    def __init__(self, linear, rank):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + x @ self.lora_A.T @ self.lora_B.T  # (B, T, out)


def add_lora(model, rank):
    """Makes every Linear of the blocks a LoRALinear. The caller chooses which parameters train."""
    if rank < 1:
        raise ValueError(f"LoRA rank is {rank}, expected 1 or more")
    for name, linear in list(model.transformer.h.named_modules()):
        if isinstance(linear, nn.Linear):
            model.transformer.h.set_submodule(name, LoRALinear(linear, rank))


@torch.no_grad()
def merge_lora(model):
    """A plain GPT that computes the same: a copy with W + B A in the place of W. `model` stays as it is."""
    plain = copy.deepcopy(model)
    for name, lora in list(plain.named_modules()):
        if isinstance(lora, LoRALinear):
            linear = nn.Linear(*lora.weight.T.shape, device="meta")  # draws no random numbers
            with torch.autocast(lora.weight.device.type, enabled=False):  # the product in float32
                linear.weight, linear.bias = nn.Parameter(lora.weight + lora.lora_B @ lora.lora_A), lora.bias
            plain.set_submodule(name, linear)
    return plain


# ------------------------------------------------------------------------------------------------ checkpoints
def previous(path):
    """Where the checkpoint before the one at `path` is kept."""
    return path.with_suffix(".prev.pt")


def save_checkpoint(path, ckpt):
    """Writes a dict of numbers, strings and tensors. The file that was there becomes previous(path). If it
    cannot be written, that is an OSError, and what was there is untouched."""
    tmp = path.with_name(path.name + ".tmp")
    try:
        with open(tmp, "wb") as file:
            torch.save(ckpt, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as e:  # torch reports a full disk as a RuntimeError
        tmp.unlink(missing_ok=True)
        reason = getattr(e, "strerror", None) or str(e).splitlines()[0]
        raise OSError(f"cannot write {path}: {reason}; what was saved before is still there") from None
    if path.exists():
        previous(path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a file system without links keeps no predecessor
            os.link(path, previous(path))   # and no rename: another process may be reading path at any moment
    os.replace(tmp, path)


def load_checkpoint(path):
    """A checkpoint of train.py as a dict on the CPU; no code in it is run. If there is none or its content is
    not what was written, that is a ValueError. OSError (no permission, a failing disk) and MemoryError say
    nothing about the content."""
    try:
        with open(path, "rb") as file:
            if zipfile.ZipFile(file).testzip():  # checksums that torch.save writes and torch.load ignores
                raise zipfile.BadZipFile
            file.seek(0)
            ckpt = torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"no checkpoint at {path}: give the path of a .pt file under runs/") from None
    except Exception as e:
        if isinstance(e, MemoryError) or "allocate" in str(e):  # of torch it is a RuntimeError
            raise MemoryError(f"not enough memory to load {path}") from None
        if isinstance(e, OSError) and e.errno != errno.EINVAL:  # EINVAL: its table points outside the file
            raise
        raise ValueError(f"{path} is damaged or is not a nanoCPT checkpoint ({type(e).__name__}): use "
                         "another copy, or train it again") from None
    if not isinstance(ckpt, dict) or not {"config", "model", "ema", "job"} <= ckpt.keys():
        raise ValueError(f"{path} is not a nanoCPT checkpoint: give a .pt file that train.py wrote")
    return ckpt


def newest_checkpoint(path):
    """The checkpoint at `path`, or None. If its content is damaged, it is renamed with a warning, and the one
    before it is returned."""
    for candidate in (path, previous(path)):
        try:
            if candidate.exists():
                return load_checkpoint(candidate)
        except ValueError as e:
            with contextlib.suppress(FileNotFoundError):  # another process has done it
                os.replace(candidate, candidate.with_suffix(".damaged"))
            print(f"warning: {e}. It now ends in .damaged; the one before it is used", file=sys.stderr)


def model_from_checkpoint(ckpt):
    """The GPT of a checkpoint as it was evaluated: with LoRA merged, with the average of a shadow EMA."""
    arm = ckpt["job"]["arm"]
    model = GPT(GPTConfig(**ckpt["config"]))
    if arm["lora_rank"]:
        add_lora(model, arm["lora_rank"])
    model.load_state_dict(ckpt["model"])
    if arm["shadow"]:
        model.load_state_dict(ckpt["ema"], strict=False)  # it names the tied tensor once
    return merge_lora(model) if arm["lora_rank"] else model


# -------------------------------------------------------------------------------- the published GPT-2 files
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # stored as (in, out)
MASKS = (".attn.bias", ".attn.masked_bias")  # the causal mask: some files hold it, no model needs it
NUMBERS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FIXED = {"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
         "tie_word_embeddings": True, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}


def read_safetensors(path):
    """{name: tensor} of a safetensors file: the header's length in 8 bytes, the header, the numbers."""
    tensors = {}
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(start - 8, 10 ** 8)))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if name.endswith(MASKS):
                continue
            first, last = entry["data_offsets"]
            file.seek(start + first)
            numbers = torch.frombuffer(bytearray(file.read(last - first)), dtype=NUMBERS[entry["dtype"]])
            tensors[name] = numbers.view(entry["shape"])
    return tensors


def read_weights(folder):
    """{name: tensor} of a folder's weights: of one file, or of the parts that an index lists."""
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin.index.json")
    name = next((name for name in names if (folder / name).exists()), "pytorch_model.bin")
    parts, tensors = [name], {}
    if name.endswith(".json"):
        parts = set(json.loads((folder / name).read_text())["weight_map"].values())
    for part in parts:
        if part.endswith(".safetensors"):
            tensors |= read_safetensors(folder / part)
        else:
            tensors |= torch.load(folder / part, map_location="cpu", weights_only=True)  # runs no code
    return {name.removeprefix("transformer."): x for name, x in tensors.items() if not name.endswith(MASKS)}


def load_gpt2(folder):
    """A GPT from a folder with config.json and the weights of a GPT-2 of any size, as published. ValueError
    with what is missing, does not fit, or is computed in another way than here."""
    folder = Path(folder)
    try:
        c = json.loads((folder / "config.json").read_text())
        for key, value in FIXED.items():
            if c.get(key, value) != value:
                raise ValueError(f"{key} is {c[key]!r}, only {value!r} is supported")
        model = GPT(GPTConfig(c["vocab_size"], c["n_positions"], c["n_layer"], c["n_head"], c["n_embd"]))
        tensors = read_weights(folder)
        head = tensors.pop("lm_head.weight", tensors["wte.weight"])
        if not torch.equal(head, tensors["wte.weight"]):
            raise ValueError("lm_head.weight differs from wte.weight, only tied embeddings are supported")
        state = {f"transformer.{n}": x.T if n.endswith(TRANSPOSED) else x for n, x in tensors.items()}
        model.load_state_dict(state | {"lm_head.weight": head})
        return model
    except FileNotFoundError as e:
        raise ValueError(f"{folder} is not a GPT-2 as published: {e.filename} is missing") from None
    except (OSError, MemoryError):
        raise
    except Exception as e:  # what a damaged file can lead to has no end
        reason = " ".join(f"{type(e).__name__}: {e}".split())[:200]
        raise ValueError(f"{folder} is not a GPT-2 that can be loaded ({reason})") from None


def save_gpt2(model, folder):
    """Writes config.json and model.safetensors as GPT-2 is published. If they cannot be written, that is an
    OSError, and what was in the folder is untouched."""
    folder, c, header, tensors, end = Path(folder), model.config, {"__metadata__": {"format": "pt"}}, [], 0
    for name, p in model.named_parameters():
        name = name.removeprefix("transformer.")
        x = (p.T if name.endswith(TRANSPOSED) else p).detach().float().cpu().contiguous()
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [end, end + 4 * x.numel()]}
        tensors.append(x)
        end += 4 * x.numel()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    config = FIXED | {
        "architectures": ["GPT2LMHeadModel"], "vocab_size": c.vocab_size, "n_ctx": c.block_size,
        "n_positions": c.block_size, "n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd}
    weights, shape = folder / "model.safetensors.tmp", folder / "config.json.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(weights, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for x in tensors:
                file.write(x.numpy())
        shape.write_text(json.dumps(config, indent=1))
        os.replace(weights, folder / "model.safetensors")
        os.replace(shape, folder / "config.json")
    except OSError as e:
        weights.unlink(missing_ok=True)
        shape.unlink(missing_ok=True)
        raise OSError(f"cannot write {folder}: {e.strerror}; what was there is untouched") from None


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="a .pt file under runs/")
    parser.add_argument("--export", metavar="FOLDER", help="where to write it as GPT-2 is published")

    def refuse(message):
        parser.exit(2, f"error: {message}\n")

    parser.error = refuse  # a user's mistake gets one line
    flags = parser.parse_args()
    if bool(flags.checkpoint) != bool(flags.export):
        refuse("give both a checkpoint and --export FOLDER, or neither")
    if flags.export:
        try:
            save_gpt2(model_from_checkpoint(load_checkpoint(flags.checkpoint)), flags.export)
        except (ValueError, OSError, MemoryError) as e:
            refuse(e)
        return print(f"{flags.export}: config.json and model.safetensors, as GPT-2 is published. For its "
                     "tokenizer, use bench.py --tokenizer")
    with torch.device("meta"):
        print(f"GPT-2 124M: {GPT(GPTConfig()).num_params():,} parameters")
    torch.manual_seed(0)
    tiny = GPT(GPTConfig(vocab_size=10, block_size=16, n_layer=2, n_head=2, n_embd=32))
    sample = tiny.generate(torch.zeros(1, 1, dtype=torch.long), 15, temperature=0)
    print("untrained, greedy:", sample[0].tolist())


if __name__ == "__main__":
    main()
