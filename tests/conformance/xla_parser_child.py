"""XLA's own parser as a child process: `python xla_parser_child.py FILE...` prints JSON.

Each file is parsed in a process of its own, because XLA aborts on some. The answer per file is
`{"error": text}` or `{"computations": [{"name", "root", "instructions": [...]}]}`, where an
instruction is `[name, opcode, [operand names], text]`. Needs jaxlib; imports nothing of ours.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
from typing import Any

from jaxlib import _hlo

_HEADER = re.compile(r"^(?:ENTRY )?%([^ ]+) ")
_ROOT = re.compile(r"^ +ROOT %([^ ]+) = ")


def _roots(text: str) -> dict[str, str]:
    """Root name by computation, from the printed module."""
    found: dict[str, str] = {}
    computation = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            computation = header.group(1)
        elif root := _ROOT.match(line):
            found[computation] = root.group(1)
    return found


def _answer(path: str) -> dict[str, Any]:
    with gzip.open(path, "rt") if path.endswith(".gz") else open(path) as file:
        text = file.read()
    try:
        module = _hlo.hlo_module_from_text(text)
    except Exception as error:
        return {"error": str(error)}
    roots = _roots(module.to_string())
    return {
        "computations": [
            {
                "name": computation.name,
                "root": roots.get(computation.name),
                "instructions": [
                    [
                        instruction.name,
                        str(instruction.opcode).rpartition(".")[2],
                        [operand.name for operand in instruction.operands()],
                        instruction.to_string(),
                    ]
                    for instruction in computation.instructions()
                ],
            }
            for computation in module.computations()
        ]
    }


def _in_own_process(path: str) -> dict[str, Any]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with os.fdopen(writer, "w") as out:
            out.write(json.dumps(_answer(path)))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as received:
        answer = received.read()
    _, status = os.waitpid(child, 0)
    result: dict[str, Any] = json.loads(answer) if status == 0 else {"error": f"abort {status}"}
    return result


if __name__ == "__main__":
    json.dump({path: _in_own_process(path) for path in sys.argv[1:]}, sys.stdout)
