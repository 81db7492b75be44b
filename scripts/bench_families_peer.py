"""The peers' side of `bench_train.py --families`: runs one of dictionary_learning's or SAELens's own trainers on known
directions, under an interpreter that has them, and prints a RESULT line. Batches, learning rate, warm-up and steps are
the same for all; the rest is the peer's own recipe."""

import argparse
import json
import math
import time

import numpy as np
import torch

BATCH, D_IN, D_SAE, K = 2048, 256, 2048, 32


def batches(vectors, steps):
    for step in range(steps):
        low = step % (len(vectors) // BATCH) * BATCH
        yield torch.from_numpy(np.array(vectors[low : low + BATCH]))


def dictionary_learning(args, vectors):
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.p_anneal import PAnnealTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.training import trainSAE

    k = {"k": K, "threshold_start_step": args.steps // 2}
    ramp = {"sparsity_warmup_steps": args.steps // 5}
    trainer, own = {
        "relu": (StandardTrainer, {"l1_penalty": args.penalty, **ramp}),
        "gated": (GatedSAETrainer, {"l1_penalty": args.penalty, **ramp}),
        "jumprelu": (JumpReluTrainer, {"target_l0": float(K), **ramp}),
        "batchtopk": (BatchTopKTrainer, k),
        "matryoshka": (MatryoshkaBatchTopKTrainer, {"group_fractions": [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2], **k}),
        "p_anneal": (
            PAnnealTrainer,
            {
                "initial_sparsity_penalty": args.penalty, "anneal_start": args.steps // 5, "p_end": 0.2,
                "sparsity_function": "Lp^p", **ramp,
            },
        ),
    }[args.family]  # fmt: skip
    kept = []

    class Kept(trainer):
        def __init__(self, **settings):
            super().__init__(**settings)
            kept.append(self.ae)

    config = dict(trainer=Kept, steps=args.steps, activation_dim=D_IN, dict_size=D_SAE, layer=0, lm_name="none",
                  lr=args.lr, warmup_steps=args.warmup, device="cpu", seed=0, **own)  # fmt: skip
    begun = time.process_time()
    trainSAE(data=batches(vectors, args.steps), trainer_configs=[config], steps=args.steps, device="cpu")
    spent = time.process_time() - begun
    sae = kept[0].eval()
    rows = sae.W_dec if hasattr(sae, "W_dec") else sae.decoder.weight.T
    if args.family in ("batchtopk", "matryoshka"):
        return spent, rows, lambda x: sae.encode(x, use_threshold=True), sae.decode
    return spent, rows, sae.encode, sae.decode


def saelens(args, vectors):
    import sae_lens as sl
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    shared = {"d_in": D_IN, "d_sae": D_SAE, "device": "cpu"}
    sae = {
        "relu": lambda: sl.StandardTrainingSAE(sl.StandardTrainingSAEConfig(l1_coefficient=args.penalty, **shared)),
        "gated": lambda: sl.GatedTrainingSAE(sl.GatedTrainingSAEConfig(l1_coefficient=args.penalty, **shared)),
        "jumprelu": lambda: sl.JumpReLUTrainingSAE(sl.JumpReLUTrainingSAEConfig(l0_coefficient=args.penalty, **shared)),
        "batchtopk": lambda: sl.BatchTopKTrainingSAE(sl.BatchTopKTrainingSAEConfig(k=K, **shared)),
        "matryoshka": lambda: sl.MatryoshkaBatchTopKTrainingSAE(
            sl.MatryoshkaBatchTopKTrainingSAEConfig(k=K, matryoshka_widths=[128, 256, 512, 1024, 2048], **shared)
        ),
    }[args.family]()
    config = SAETrainerConfig(
        total_training_samples=args.steps * BATCH, train_batch_size_samples=BATCH, device="cpu", autocast=False,
        lr=args.lr, lr_end=args.lr / 10, lr_scheduler_name="constant", lr_warm_up_steps=args.warmup, lr_decay_steps=0,
        n_restart_cycles=1, adam_beta1=0.9, adam_beta2=0.999, dead_feature_window=1000, feature_sampling_window=2000,
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=batches(vectors, args.steps + 2))
    begun = time.process_time()
    trainer.fit()
    return time.process_time() - begun, sae.W_dec, sae.encode, sae.decode


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=("dictionary_learning", "saelens"))
    parser.add_argument("family")
    parser.add_argument("--workload", required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--penalty", type=float, default=0.1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    folder = f"{args.workload}/synthetic"
    vectors = np.load(f"{folder}/train.npy", mmap_mode="r")
    train = {"dictionary_learning": dictionary_learning, "saelens": saelens}[args.library]
    spent, rows, encode, decode = train(args, vectors)
    x = torch.from_numpy(np.load(f"{folder}/eval.npy"))
    true = torch.from_numpy(np.load(f"{folder}/dict.npy"))
    residual, active, fired = 0.0, 0, torch.zeros(D_SAE, dtype=torch.bool)
    with torch.no_grad():
        for part in x.split(8192):
            acts = encode(part)
            residual += float((part - decode(acts)).double().square().sum())
            active += int((acts > 0).sum())
            fired |= (acts > 0).any(0)
        best = (true @ torch.nn.functional.normalize(rows, dim=1).T).amax(1)
    result = {
        "ms_cpu_per_step": 1000 * spent / args.steps,
        "l0": active / len(x),
        "fvu": residual / float((x - x.mean(0)).double().square().sum()),
        "dead": 1 - float(fired.float().mean()),
        "max_cosine": float(best.mean()),
        "recovered": float((best > 0.9).float().mean()),
    }
    assert math.isfinite(result["fvu"])
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
