# SPDX-License-Identifier: Apache-2.0
"""Speed of the network: voxels per second, against the plain form in the same run.

The plain form is the published one: every row of every block, attention weights written out and kept.  Ours
computes the readout's row alone in the last block and uses fused attention.  Both take turns on the same
voxels, and the best of the rounds counts; wall and processor time are given, since CPUs are seldom idle.

    python benchmarks/braincorl.py [--preset CLIP] [--contexts 100 500]
    python benchmarks/braincorl.py --device cuda --voxels 20000 --contexts 100 --peak 989
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from conform_app.braincorl import PRESETS, BraInCoRL, ModelSizes, transformer_weights, unit_norm


def operations(sizes: ModelSizes, n_images: int) -> float:
    """Floating-point operations per voxel: matrix products only, as computed (last block: one row)."""
    s, length = sizes, n_images + sizes.registers
    kv, rest = 2 * s.width**2, 2 * s.width**2 + 3 * s.width * s.ffn
    early = (s.features + 1) * s.block + s.block * s.width + (s.features + 1) * s.width
    attention = 2 * length * s.width
    full = (s.layers - 1) * length * (kv + rest + attention)
    return 2.0 * (n_images * early + full + length * kv + rest + attention)


def timed(work, device: str) -> tuple[float, float]:
    if device != "cpu":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=list(PRESETS), nargs="+", default=["vis", "CLIP"])
    parser.add_argument("--contexts", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--voxels", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", type=float, help="peak of the device, TFLOP/s")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    print(
        f"{args.voxels} voxels, {args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print("| preset | images | voxels/s | plain | ratio | per CPU second | plain | ratio | TFLOP/s | share |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for preset in args.preset:
        torch.manual_seed(0)
        model = BraInCoRL(preset).eval().to(args.device)
        for n in args.contexts:
            x = unit_norm(rng.normal(size=(n, model.sizes.features)))
            y = rng.normal(size=(args.voxels, n)).astype(np.float32)
            context, betas = torch.from_numpy(x).to(args.device), torch.from_numpy(y).to(args.device)

            def ours(model=model, x=x, y=y) -> None:
                transformer_weights(model, x, y)

            def plain(model=model, context=context, betas=betas) -> None:
                with (
                    torch.inference_mode(),
                    torch.autocast(args.device, torch.bfloat16, enabled=args.device != "cpu"),
                ):
                    for part in betas.split(64):
                        model.weights(context, part, plain=True)

            ours()  # first calls plan and allocate
            rounds = [(timed(ours, args.device), timed(plain, args.device)) for _ in range(args.rounds)]
            (a, b), (c, d) = np.min(rounds, axis=0)
            flops = operations(model.sizes, n) * args.voxels / a / 1e12
            share = f"{flops / args.peak:.0%}" if args.peak else ""
            v = args.voxels
            print(
                f"| {preset} | {n} | {v / a:.2f} | {v / c:.2f} | {c / a:.2f} | {v / b:.2f} | {v / d:.2f} | "
                f"{d / b:.2f} | {flops:.3f} | {share} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
