"""XLA's own HloCostAnalysis as an oracle: `python cost_oracle.py` reads modules, prints properties.

Standard input: a JSON list of HLO texts. Standard output: one JSON line `[index, properties]` per
module that XLA accepts. XLA may abort the whole process on some, and its parser has been seen to go
round in circles, so the parent starts it again behind the module that it did not answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence

PATIENCE_SECONDS = 120.0
"""What a process may take for all its modules, which is seconds otherwise."""


def xla_properties(texts: Sequence[str]) -> dict[int, dict[str, float]]:
    """HloCostAnalysis' properties of every module that XLA accepts, by position."""
    found: dict[int, dict[str, float]] = {}
    start = 0
    while start < len(texts):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
        child = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        overdue = threading.Timer(PATIENCE_SECONDS, child.kill)
        overdue.start()
        answers, errors = child.communicate(json.dumps(list(texts[start:])))
        overdue.cancel()
        lines = [json.loads(line) for line in answers.splitlines()]
        found |= {start + index: properties for index, properties in lines if properties}
        if child.returncode > 0:
            raise RuntimeError(f"the oracle does not run: {errors[-2000:]}")
        answered = lines[-1][0] + 1 if lines else 0
        start += answered + 1 if child.returncode else len(texts)
    return found


def _main() -> None:
    import jax
    from jaxlib import _hlo, _jax

    client = jax.devices("cpu")[0].client
    for index, text in enumerate(json.load(sys.stdin)):
        try:
            module = _hlo.hlo_module_from_text(text)
            properties = dict(_jax.hlo_module_cost_analysis(client, module))
        except Exception:  # the parser raises several kinds; a module it refuses has no answer
            properties = None
        print(json.dumps([index, properties]), flush=True)


if __name__ == "__main__":
    _main()
