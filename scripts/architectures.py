"""Tries every causal architecture of the installed transformers on a tiny model with random weights, and prints, or
writes into docs/limits.md, which results are right and which are refused.

    scripts/architectures.py [NAME ...] [--write]

activations   of the first and the last block, in padded batches, against the plain model on each text by itself
blocks        promoted tokens of directions that the last block writes, against the model whose last block is made to
              return nothing but the direction
MLP, heads    the same of what the MLP returns, and of what attention's heads return before the output projection

`right` is printed where all promoted tokens (the first 20 of each of 16 random directions) agree and the logits do.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import multiprocessing
import os
import re
import resource
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.small_models import byte_level_tokenizer

from autointerp.errors import InputError
from autointerp.model.hooks import Hookpoint, activations_at_all
from autointerp.model.load import LoadedModel
from autointerp.model.logit_path import find_logit_path
from autointerp.model.padding import checked

VOCAB, DIRECTIONS, TOP, SECONDS, MOST_BYTES = 320, 16, 20, 40, 8 << 30
LIMITS = Path(__file__).parents[1] / "docs" / "limits.md"
BEGIN, END = "<!-- architectures: made by scripts/architectures.py -->", "<!-- end of architectures -->"

SIZES: dict[int, str] = {
    VOCAB: "vocab_size padded_vocab_size vocab_size_per_layer_input text_vocab_size",
    64: "hidden_size d_model n_embd model_dim embed_dim embedding_size dim hidden_dim word_embed_proj_dim "
    "embedding_dim lru_width d_embedding hidden_size_base",
    96: "intermediate_size ffn_dim ffn_hidden_size n_inner d_inner d_ff decoder_ffn_dim encoder_ffn_dim "
    "intermediate_size_mlp prefix_hidden_size dense_intermediate_size shared_intermediate_size dim_ff ffn_size",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_encoder_layers "
    "num_decoder_layers num_blocks num_key_value_heads n_kv_head num_kv_heads num_experts_per_tok moe_topk "
    "num_experts_per_token n_expert_per_token moe_k top_k num_selected_experts mamba_expand expand lightning_nope "
    "attn_layer_period expert_layer_period attention_layers_count num_mem_blocks",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads num_experts "
    "num_local_experts n_routed_experts moe_num_experts encoder_num_heads num_attn_heads mamba_d_conv kv_n_heads "
    "index_topk",
    16: "head_dim d_kv v_head_dim q_lora_rank kv_lora_rank mamba_d_head mamba_head_dim kv_channels global_head_dim "
    "swa_head_dim hidden_size_per_layer_input linear_key_head_dim linear_value_head_dim dim_head "
    "state_size query_pre_attn_scalar",
    8: "qk_rope_head_dim qk_nope_head_dim rotary_dim mamba_d_state ssm_state_size laurel_rank index_head_dim "
    "mamba_n_heads mamba_num_heads index_n_heads",
    32: "moe_intermediate_size moe_shared_expert_intermediate_size shared_expert_intermediate_size chunk_size "
    "mamba_chunk_size expert_ffn_hidden_size expert_hidden_size",
    128: "max_position_embeddings n_positions max_seq_len n_ctx seq_length max_sequence_length sliding_window "
    "max_target_positions block_size context_length mamba_d_ssm",
    1: "n_group topk_group n_shared_experts num_shared_experts mamba_n_groups n_groups num_nextn_predict_layers "
    "num_codebooks attn_layer_offset expert_layer_offset num_shared_expert first_k_dense_replace",
    0: "bos_token_id eos_token_id decoder_start_token_id num_kv_shared_layers resid_pdrop embd_pdrop attn_pdrop",
}
SIZE = {name: size for size, names in SIZES.items() for name in names.split()} | {"pad_token_id": 1}
FILLED = (
    "pad_token_id", "bos_token_id", "eos_token_id", "num_experts_per_tok", "n_group", "topk_group", "n_routed_experts",
    "n_shared_experts", "head_dim",
)  # fmt: skip
"""Settings that are given a size where the usual configuration has none."""
LISTS = re.compile(
    "layer_type|layers_block_type|mlp_layer_types|_layer_types|no_rope_layers|attention_layers|_pattern$"
)
OWN: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "modernbert-decoder": {"cls_token_id": 0, "sep_token_id": 0},
    "nemotron": {"num_key_value_heads": 2},
    "xlm": {"emb_dim": 64},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}
"""What does not follow from the sizes above."""


# --- tiny models ----------------------------------------------------------------------------------------------------


def small_config(name: str) -> Any:
    """The architecture's configuration with small sizes."""
    return _small(CONFIG_MAPPING[name], OWN.get(name, {}))


def _small(kind: Any, own: dict[str, Any]) -> Any:
    usual = kind()
    settings: dict[str, Any] = {}
    for key, value in usual.to_dict().items():
        if key.endswith("_config") and key != "quantization_config" and not isinstance(value, (str, type(None))):
            part = getattr(usual, key, None)
            if hasattr(part, "to_dict") and not isinstance(part, dict):
                settings[key] = _small(type(part), {}).to_dict()
        elif key in SIZE and isinstance(value, (int, type(None))) and not isinstance(value, bool):
            if value is not None or key in FILLED:
                settings[key] = SIZE[key]
        elif LISTS.search(key) and isinstance(value, (list, tuple)) and len(value) > 2:
            settings[key] = list(value)[-2:]
        elif key == "initializer_range":
            settings[key] = 0.2
    accepted = inspect.signature(kind.__init__).parameters
    if "layer_types" in usual.to_dict() and "layer_types" not in accepted:
        settings.pop("layer_types", None)
    if "kv_lora_rank" in settings:  # compressed keys and values of every head
        settings["num_key_value_heads"] = settings.get("num_attention_heads", 4)
        settings |= {"head_dim": SIZE["qk_rope_head_dim"]} if "head_dim" in settings else {}
    settings |= own
    return kind(**settings)


def small_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    config = small_config(name)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module_name, module in model.named_modules():
            if "norm" in type(module).__name__.lower():  # norms of random models have no effect
                for parameter in module.parameters(recurse=False):
                    parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
            del module_name
        for parameter in model.parameters():
            if not torch.isfinite(parameter).all():
                parameter.nan_to_num_(0.0, 0.0, 0.0)
    return model


def loaded_of(model: nn.Module) -> LoadedModel:
    tokenizer: Any = byte_level_tokenizer()
    return LoadedModel(model, tokenizer, torch.device("cpu"), torch.float32, "tiny", "random", "")  # type: ignore[arg-type]


# --- the plain model ------------------------------------------------------------------------------------------------


@contextmanager
def replaced(
    module: nn.Module, value: Callable[[Tensor], Tensor], side: str = "out", call: int | None = None
) -> Iterator[None]:
    """While active, `module` returns (or reads) value(what it would) as its first tensor; with `call`, in its call of
    that number alone."""
    calls = itertools.count()

    def first(output: Any) -> Any:
        if call is not None and next(calls) != call:
            return None
        if isinstance(output, Tensor):
            return value(output)
        return type(output)((value(output[0]), *output[1:]))

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not args or (call is not None and next(calls) != call):
            return None
        return (value(args[0]), *args[1:]), kwargs

    if side == "in":
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(lambda m, a, output: first(output))
    try:
        yield
    finally:
        handle.remove()


def plain_run(model: nn.Module, ids: Tensor, *edits: Any) -> Tensor:
    with torch.no_grad(), ExitStack() as stack:
        for edit in edits:
            stack.enter_context(edit)
        output = model(input_ids=ids, use_cache=False)
    logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits


def blocks_of(model: nn.Module, ids: Tensor) -> list[str]:
    """The names of the outermost numbered modules that the model runs, in order: those of the list of the last one."""
    order: list[str] = []
    modules = dict(model.named_modules())
    lists = [n for n, m in modules.items() if isinstance(m, nn.ModuleList)]
    outer = [n for n in lists if not any(n.startswith(f"{other}.") for other in lists)]
    names = [f"{n}.{k}" for n in outer for k, _ in modules[n].named_children()]
    with ExitStack() as stack:
        for name in names:
            handle = modules[name].register_forward_hook(lambda m, a, o, name=name: order.append(name))
            stack.callback(handle.remove)
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    whole = [name for name in order if next(modules[name].children(), None) is not None]
    last = whole[-1].rpartition(".")[0]
    return [name for name in whole if name.rpartition(".")[0] == last]


# --- what is tried --------------------------------------------------------------------------------------------------


def activations(model: nn.Module, blocks: list[str]) -> str:
    """As a harvest reads them: the model is first tried for what its padding does."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([12, 7, 9])
    texts = [torch.randint(5, VOCAB, (n,), generator=generator) for n in lengths.tolist()]
    points = [Hookpoint(name) for name in dict.fromkeys((blocks[0], blocks[-1]))]
    try:
        loaded = checked(loaded_of(model), int(lengths.max()), 1024)
        ids = torch.full((3, 12), loaded.pad_id)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = text
        found = activations_at_all(loaded, points, ids, lengths)
    except InputError as error:
        return f"refused: {error}"
    for point, batch in zip(points, found, strict=True):
        for row, text in zip(batch, texts, strict=True):
            held: list[Tensor] = []
            keep = replaced(model.get_submodule(point.path), lambda y, held=held: held.append(y) or y)
            plain_run(model, text[None], keep)
            if not torch.allclose(row[: len(text)], held[0][0], rtol=1e-3, atol=1e-3 * float(held[0].abs().max())):
                return "WRONG"
    return "right"


def projection(model: nn.Module, blocks: list[str], point: Hookpoint) -> str:
    """The product's logits of random directions at `point`, in the last block, against plain runs of the model."""
    try:
        path = find_logit_path(loaded_of(model), point)
    except InputError as error:
        return f"refused: {error}"
    last, ids = model.get_submodule(blocks[-1]), torch.full((DIRECTIONS, 1), 5)
    d = torch.nn.functional.normalize(
        torch.randn(DIRECTIONS, path.width, generator=torch.Generator().manual_seed(3)), dim=1
    )
    written, sink = d, Sink(last)
    if point.path != blocks[-1]:  # what enters the stream because of d, with the rest of the block as it is
        if path.tail and any(path.tail[0] is module for module in last.modules()):
            sink = Sink(path.tail[0], "in")  # the block's own last norm is the final one
        added = []
        for value in (d, torch.zeros_like(d)):
            held: list[Tensor] = []
            where = model.get_submodule(point.path)
            once = blocks.count(blocks[-1]) - 1  # a block that runs several times writes when it runs last
            edits = [replaced(where, lambda y, v=value: v.view_as(y).clone(), point.side, once)]
            for name, module in last.named_children():  # what reads the stream further on in the block
                if name in AFTER or (point.side == "in" and name in MLPS):
                    edits.append(replaced(module, torch.zeros_like))
            plain_run(model, ids, *edits, replaced(sink.module, lambda y, held=held: held.append(y) or y, sink.side))
            added.append(held[-1].reshape(DIRECTIONS, -1))
        written = added[0] - added[1]
    real, none = (
        plain_run(model, ids, replaced(sink.module, lambda y, v=value: v.view_as(y).clone(), sink.side)).reshape(
            DIRECTIONS, -1
        )
        for value in (written, torch.zeros_like(written))
    )
    with torch.no_grad():
        found = path.hidden(d) @ path.head.weight.T  # type: ignore[operator]
    real = real - none
    same = [
        len(set(a.topk(TOP).indices.tolist()) & set(b.topk(TOP).indices.tolist())) / TOP
        for a, b in zip(found, real, strict=True)
    ]
    text = model.config.get_text_config()  # type: ignore[operator]
    capped = any(getattr(text, name, None) for name in ("final_logit_softcapping", "logit_softcap", "logits_soft_cap"))
    centred = [z - z.mean(1, keepdim=True) for z in (found, real)]
    off = float((centred[0] - centred[1]).norm() / centred[1].norm())
    if min(same) < 0.95 or (off > 0.02 and not capped):
        return f"WRONG ({sum(same) / len(same):.2f} of the tokens, logits off by {off:.2g})"
    return "right"


@dataclass(frozen=True)
class Sink:
    """Where the residual stream is, just before the way to the logits."""

    module: nn.Module
    side: str = "out"


MLPS = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "ff", "fc2", "mixer", "shared_mlp")
AFTER = ("post_per_layer_input_norm",)
"""What blocks run after the MLP."""
HEADS = ("attn", "self_attn", "attention", "self_attention", "temporal_block")
OUTPUTS = ("o_proj", "c_proj", "dense", "out_proj", "wo")


def tried(name: str) -> dict[str, str]:
    model = small_model(name)
    blocks = blocks_of(model, torch.full((2, 1), 5))
    last = model.get_submodule(blocks[-1])
    children = dict(last.named_children())
    found = {"activations": activations(model, blocks), "blocks": projection(model, blocks, Hookpoint(blocks[-1]))}
    mlp = next((n for n in MLPS if n in children), None)
    if mlp is not None:
        found["MLP"] = projection(model, blocks, Hookpoint(f"{blocks[-1]}.{mlp}"))
    adds_stream = mlp is not None and "residual" in inspect.signature(children[mlp].forward).parameters
    for attention in (n for n in HEADS if n in children and not adds_stream):
        inner = [n for n in OUTPUTS if hasattr(children[attention], n)]
        if inner:
            found["heads"] = projection(model, blocks, Hookpoint(f"{blocks[-1]}.{attention}.{inner[0]}", "in"))
            break
    return found


def guarded(name: str) -> dict[str, str]:
    """`tried` in a process of its own, which may take neither too long nor too much memory."""
    context = multiprocessing.get_context("fork")
    answer, said = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(name, said))
    child.start()
    said.close()
    found: dict[str, str] = {"activations": f"not tried: longer than {SECONDS} s"}
    try:
        if answer.poll(SECONDS):
            found = answer.recv()
    except EOFError:
        found = {"activations": "not tried: its process died"}
    child.kill()
    child.join()
    return found


def _answer(name: str, said: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            found = tried(name)
    except Exception as error:  # noqa: BLE001  # any architecture's own code
        lines = str(error).strip().splitlines() or [""]
        found = {"activations": f"not tried: {type(error).__name__}: {' '.join(lines[:2])[:160]}"}
    said.send(found)


# --- the table ------------------------------------------------------------------------------------------------------

COLUMNS = ("activations", "blocks", "MLP", "heads")


def table(results: dict[str, dict[str, str]]) -> str:
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, found in results.items():
        groups[tuple(found.get(c, "-").partition(":")[0].partition(" (")[0] for c in COLUMNS)].append(name)
    lines = ["| activations | blocks | MLP | heads | architectures |", "|---|---|---|---|---|"]
    for key, names in sorted(groups.items(), key=lambda item: -len(item[1])):
        lines.append(f"| {' | '.join(key)} | {len(names)}: {', '.join(f'`{n}`' for n in sorted(names))} |")
    return "\n".join(lines)


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="architectures (model_type); all without it")
    parser.add_argument("--write", action="store_true", help="write the table into docs/limits.md")
    options = parser.parse_args()
    results = {}
    for name in options.names or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        results[name] = guarded(name)
        print(name, *(f"\n    {c}: {v}" for c, v in results[name].items()), flush=True)
    print(table(results))
    if options.write:
        page = LIMITS.read_text(encoding="utf-8")
        head, rest = page.split(BEGIN)[0], page.split(END)[1]
        LIMITS.write_text(f"{head}{BEGIN}\n{table(results)}\n{END}{rest}", encoding="utf-8")
    wrong = [name for name, found in results.items() if any("WRONG" in value for value in found.values())]
    if wrong:
        sys.exit(f"wrong: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
