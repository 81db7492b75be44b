"""Train the demo language model that ships under data/demo_model.

It is a four-layer Llama of width 256 with a byte-level BPE of 4,096 pieces, trained on the source text of the Python
standard library of the interpreter that runs this script. Files under `test` folders are read half as often as library
code, since they have twice the volume and repeat themselves far more. Tables of code points and generated help text
(`encodings`, `pydoc_data`) are left out. A twentieth of the library files, chosen by a hash of their content, is held
out and never trained on.

Every training window is [BOS] + consecutive tokens, as the harvest later shows them to the model. Muon (torch.optim)
trains the matrices inside the blocks, AdamW the embedding and the norms, both under bf16 autocast.

    python scripts/train_demo_model.py --out data/demo_model            # about an hour on two cores

Writes the model (float16 safetensors), the tokenizer and `training.json` (the loss curve).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|endoftext|>"
VOCAB = 4096
CONTEXT = 256
HELD_OUT_SHARE = 20  # one library file in so many


def library_files(root: Path) -> tuple[list[str], list[str]]:
    """(library sources, test sources) of the standard library below `root`, in a fixed order."""
    library, tests = [], []
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        parts = path.relative_to(root).parts
        if {"site-packages", "dist-packages", "encodings", "pydoc_data"} & set(parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a few test files are in other encodings on purpose
        is_test = bool({"test", "tests", "idle_test", "testmock"} & set(parts))
        (tests if is_test else library).append(text)
    return library, tests


def is_held_out(text: str) -> bool:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % HELD_OUT_SHARE == 0


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB,
            special_tokens=[END],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=END, model_max_length=2 * CONTEXT
    )


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All texts as one row of ids, int64 [n], with an end token after each."""
    ids: list[int] = []
    for encoding in tokenizer._tokenizer.encode_batch(texts):
        ids.extend(encoding.ids)
        ids.append(0)
    return torch.tensor(ids)


def windows(stream: torch.Tensor, batch: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Endless batches, int64 [batch, CONTEXT], of BOS and CONTEXT - 1 consecutive tokens. Every epoch cuts the stream
    at a new random offset and visits all windows in a new order."""
    length = CONTEXT - 1
    while True:
        phase = int(torch.randint(length, (1,), generator=generator))
        n = (len(stream) - phase) // length
        cut = stream[phase : phase + n * length].view(n, length)
        for rows in torch.randperm(n, generator=generator).split(batch):
            if len(rows) == batch:
                yield F.pad(cut[rows], (1, 0), value=0)


def loss_of(model: LlamaForCausalLM, x: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy in nats. The token after an end token is predicted from it, as from a BOS."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(x, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), x[:, 1:].flatten())


def learning_rate_at(step: int, steps: int, warmup: int = 100, decay_share: float = 0.5) -> float:
    """Share of the peak rate: a linear warm-up, then constant, then linear to zero over the last `decay_share`."""
    return min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / (steps * decay_share)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=16_000_000, help="tokens to train on")
    parser.add_argument("--batch", type=int, default=16, help=f"windows of {CONTEXT} tokens a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks (needs a C++ compiler)")
    parser.add_argument("--snapshot-every", type=int, default=0, help="also save the model every so many steps")
    args = parser.parse_args()

    import sysconfig

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    library, tests = library_files(Path(sysconfig.get_paths()["stdlib"]))
    train = [t for t in library if not is_held_out(t)]
    held_out = [t for t in library if is_held_out(t)]
    tokenizer = make_tokenizer(train + tests)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(args.out)
    lib_stream, test_stream = token_stream(tokenizer, train), token_stream(tokenizer, tests)
    stream = torch.cat([lib_stream, lib_stream, test_stream])
    held = token_stream(tokenizer, held_out)
    n_held = min(len(held) // (CONTEXT - 1), 512)
    held_windows = F.pad(held[: n_held * (CONTEXT - 1)].view(n_held, CONTEXT - 1), (1, 0), value=0)
    print(f"tokens: library {len(lib_stream):,}, tests {len(test_stream):,}, held out {len(held):,}", flush=True)

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=2 * CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=None,
        )
    )
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layers" in n)]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01), 0.02),
        (torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.98), weight_decay=0.0), 4e-3),
    ]
    if args.compile:
        model.model.compile()

    steps = args.tokens // (args.batch * CONTEXT)
    curve: list[dict[str, float]] = []
    begun, running = time.monotonic(), math.nan

    @torch.no_grad()
    def held_out_loss() -> float:
        total = sum(loss_of(model, x).item() * len(x) for x in held_windows.split(args.batch))
        return total / len(held_windows)

    def save() -> None:
        state = {name: tensor.detach().half() for name, tensor in model.state_dict().items()}
        saved = LlamaForCausalLM(model.config).half()
        saved.load_state_dict(state)
        saved.save_pretrained(args.out)
        (args.out / "training.json").write_text(
            json.dumps(
                {
                    "tokens": steps * args.batch * CONTEXT,
                    "library_tokens": len(lib_stream),
                    "test_tokens": len(test_stream),
                    "held_out_tokens": n_held * (CONTEXT - 1),
                    "batch": args.batch,
                    "context": CONTEXT,
                    "seed": args.seed,
                    "curve": curve,
                },
                indent=1,
            )
            + "\n"
        )

    for step, x in zip(range(steps), windows(stream, args.batch, generator), strict=False):
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * learning_rate_at(step, steps)
        loss = loss_of(model, x)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        running = loss.item() if math.isnan(running) else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            point = {"step": step + 1, "tokens": (step + 1) * args.batch * CONTEXT, "train_loss": round(running, 4)}
            if (step + 1) % 500 == 0 or step + 1 == steps:
                point["held_out_loss"] = round(held_out_loss(), 4)
            curve.append(point)
            print(json.dumps({**point, "seconds": round(time.monotonic() - begun)}), flush=True)
        if args.snapshot_every and (step + 1) % args.snapshot_every == 0:
            save()
    save()


if __name__ == "__main__":
    main()
