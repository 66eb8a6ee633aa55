"""Makes the corpus: `python -m hlo_graphs.zoo.build` compiles every bundle that is not there yet.

Interrupted at any moment and started again it goes on where it was: finished bundles are skipped,
and with `--dumps DIR` so are finished compiles of unfinished bundles. Needs the `tpu` extra;
the whole corpus takes about two hours on two cores.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hlo_graphs import corpus
from hlo_graphs.bundle import parse_capacity_tag, split_key
from hlo_graphs.compile import DEFAULT_TIME_LIMIT_SECONDS, extract
from hlo_graphs.errors import InputError

MODULES = {
    "vision": "convnext densenet efficientnet mlp_mixer mobilenet resnet unet vgg vit",
    "language": "bert gpt llama moe t5",
    "recurrent": "griffin gru lstm mamba",
    "generative": "dcgan dit nerf wavenet",
    "science": "alphatensor evoformer graphnet schnet",
    "recommendation": "deepfm dlrm",
    "systems": "early_exit flash_attention sharded_lm",
}
"""Which file of the zoo has a family's programs."""

CORPUS: Mapping[str, int] = {
    "alphatensor_infer.v5e": 1,
    "alphatensor_train.v5e": 0,
    "bert_base_train.v5e": 0,
    "convnext_tiny_infer.v5e": 0,
    "dcgan_train.v5e": 0,
    "deepfm_train.v5e": 1,
    "densenet121_infer.v5e": 0,
    "dit_infer.v5e": 0,
    "dlrm_infer.v5e": 1,
    "early_exit_infer.v5e": 1,
    "efficientnet_b0_infer.v5e": 0,
    "evoformer_infer.v5e": 0,
    "flash_attention_forward.v5e": 1,
    "flash_attention_forward.v5e.32MiB": 0,
    "gpt24_train.v5e": 0,
    "gpt_decode.v4": 1,
    "gpt_decode.v5e": 2,
    "gpt_decode.v5e.32MiB": 0,
    "gpt_decode.v5e.64MiB": 1,
    "gpt_decode.v6e": 1,
    "gpt_prefill.v5e": 1,
    "gpt_prefill.v5e.64MiB": 0,
    "gpt_train.v5e": 2,
    "graphnet_infer.v5e": 1,
    "griffin_forward.v5e": 0,
    "gru_train.v5e": 1,
    "llama_decode.v4": 0,
    "llama_decode.v5e": 2,
    "llama_decode.v5e.32MiB": 0,
    "llama_decode.v5e.64MiB": 1,
    "llama_decode.v6e": 0,
    "llama_prefill.v5e": 1,
    "llama_train.v5e": 2,
    "lstm_forward.v4": 1,
    "lstm_forward.v5e": 1,
    "lstm_forward.v5e.32MiB": 1,
    "lstm_forward.v6e": 1,
    "lstm_train.v4": 1,
    "lstm_train.v5e": 1,
    "lstm_train.v5e.32MiB": 1,
    "lstm_train.v6e": 1,
    "mamba_forward.v5e": 0,
    "mlp_mixer_train.v5e": 0,
    "mobilenet_v2_infer.v5e": 0,
    "moe_forward.v5e": 1,
    "nerf_train.v5e": 1,
    "resnet50_infer.v5e": 2,
    "resnet50_infer.v5e.64MiB": 0,
    "resnet50_train.v5e": 1,
    "schnet_train.v5e": 1,
    "sharded_lm_train.v5e": 0,
    "t5_train.v5e": 0,
    "unet_infer.v5e": 0,
    "vgg16_infer.v5e": 0,
    "vit_base_infer.v5e": 0,
    "wavenet_infer.v5e": 0,
}
"""Every bundle of the corpus (program, chip, and the size of fast memory where it is not the
chip's own), and how many random buffer orders it was compiled with as further points: few of the
programs that take minutes to compile have any."""


def target_of(program: str) -> str:
    """The `module:function` that makes a program; raises `InputError` for an unknown one."""
    family = corpus.family_of(program).name
    for module, families in MODULES.items():
        if family in families.split():
            return f"hlo_graphs.zoo.{module}:{program}"
    raise InputError(f"{program}: no file of the zoo has its family, {family}")


def build(key: str, output_dir: Path, dumps_dir: Path | None, time_limit_seconds: float) -> None:
    """Compiles one bundle of the corpus, `NAME.CHIP[.64MiB]`."""
    program, chip, tag = split_key(key)
    if chip is None:
        raise InputError(f"{key}: write NAME.CHIP or NAME.CHIP.64MiB")
    extract(
        target_of(program),
        chip,
        output_dir,
        vmem_bytes=None if tag is None else parse_capacity_tag(tag),
        time_limit_seconds=time_limit_seconds,
        random_orders=CORPUS.get(key, 0),
        dumps_dir=None if dumps_dir is None else dumps_dir / key,
        progress=lambda line: print(f"  {line}", flush=True),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds what is missing; returns 1 if something could not be built."""
    options = _options(arguments)
    wanted = [key for key in CORPUS if fnmatch.fnmatch(key, options.only)]
    missing = [key for key in wanted if not (options.output / f"{key}.before.hlo.gz").exists()]
    print(f"{len(wanted)} bundles, {len(missing)} to build")
    failures = 0
    for key in missing:
        started = time.monotonic()
        try:
            build(key, options.output, options.dumps, options.time_limit)
            print(f"{key}: {time.monotonic() - started:.0f} s", flush=True)
        except InputError as error:
            failures += 1
            print(f"{key}: {error}", file=sys.stderr, flush=True)
    return 1 if failures else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="*", help="pattern of bundle names")
    parser.add_argument("--output", "-o", type=Path, default=corpus.DIRECTORY)
    parser.add_argument("--dumps", type=Path, help="keep compiler dumps here, and reuse them")
    parser.add_argument("--time-limit", type=float, default=DEFAULT_TIME_LIMIT_SECONDS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
