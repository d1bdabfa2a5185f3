# SPDX-License-Identifier: Apache-2.0
"""Speed of the network: voxels per second, against the plain form in the same run.

The plain form is the published one: every row of every block, attention weights written out and kept.  Ours
computes the readout's row alone in the last block and uses fused attention; on a CPU in float32 and in
bfloat16, with the latter's error (root mean square, over the weights' spread).  All take turns on the same
voxels, and the best of the rounds counts; wall and processor time are given, since CPUs are seldom idle.

    python benchmarks/braincorl.py [--preset CLIP] [--contexts 100 500]
    python benchmarks/braincorl.py --device cuda --voxels 20000 --contexts 100 --peak 989
"""

from __future__ import annotations

import argparse
import time
from functools import partial

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
    print("| preset | images | form | voxels/s | ratio | per CPU second | ratio | error | TFLOP/s | share |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for preset in args.preset:
        torch.manual_seed(0)
        model = BraInCoRL(preset).eval().to(args.device)
        for n in args.contexts:
            x = unit_norm(rng.normal(size=(n, model.sizes.features)))
            y = rng.normal(size=(args.voxels, n)).astype(np.float32)
            context, betas = torch.from_numpy(x).to(args.device), torch.from_numpy(y).to(args.device)

            def ours(precision, model=model, x=x, y=y) -> np.ndarray:
                return transformer_weights(model, x, y, precision=precision)

            def plain(model=model, context=context, betas=betas) -> None:
                with (
                    torch.inference_mode(),
                    torch.autocast(args.device, torch.bfloat16, enabled=args.device != "cpu"),
                ):
                    for part in betas.split(64):
                        model.weights(context, part, plain=True)

            forms = ("float32", "bfloat16") if args.device == "cpu" else ("bfloat16",)
            exact = ours("float32")  # first calls plan and allocate
            error = {p: np.sqrt(((ours(p) - exact) ** 2).mean()) / exact.std() for p in forms}
            works = {"plain": plain, **{p: partial(ours, p) for p in forms}}
            rounds = [[timed(work, args.device) for work in works.values()] for _ in range(args.rounds)]
            best = dict(zip(works, np.min(rounds, axis=0), strict=True))
            for name, (wall, cpu) in best.items():
                flops = operations(model.sizes, n) * args.voxels / wall / 1e12
                tail = f"{error[name]:.1e} | {flops:.3f}" if name in error else " | "
                share = f"{flops / args.peak:.0%}" if args.peak and name in error else ""
                print(
                    f"| {preset} | {n} | {name} | {args.voxels / wall:.2f} | {best['plain'][0] / wall:.2f} | "
                    f"{args.voxels / cpu:.2f} | {best['plain'][1] / cpu:.2f} | {tail} | {share} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
