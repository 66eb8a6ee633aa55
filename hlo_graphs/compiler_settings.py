"""What the TPU compiler can be asked for: its chips, and the settings of one compile."""

from __future__ import annotations

from dataclasses import dataclass

from hlo_graphs import chips
from hlo_graphs.errors import InputError

HUGE_VMEM_BYTES = 2**30
"""The "1 GiB" setting: nearly everything fits; twice as much ends the compiler."""


@dataclass(frozen=True, slots=True)
class CompilerChip:
    """How the compiler is asked for a chip.

    `memory_bytes` of fast memory a device has (on v4 a tensor core's half of CMEM), of which
    `scratch_bytes` are set aside for the instructions' own use; `fast_memory_space` is the n of
    `S(n)`; `can_resize` says whether the compiler accepts another size.
    """

    topology: str
    accelerator_type: str
    fast_memory_space: int
    memory_bytes: int
    scratch_bytes: int
    can_resize: bool
    clock_hz: float

    def capacity_bytes(self, vmem_bytes: int | None) -> int:
        """What the assignment has to give away."""
        return (vmem_bytes or self.memory_bytes) - self.scratch_bytes


def _compiler_chip(
    name: str, topology: str, accelerator_type: str, can_resize: bool = True
) -> CompilerChip:
    chip = chips.CHIPS[name]
    return CompilerChip(
        topology=topology,
        accelerator_type=accelerator_type,
        fast_memory_space=chip.fast_memory_space,
        memory_bytes=chip.fast_capacity_bytes,
        scratch_bytes=chip.reserved_bytes,
        can_resize=can_resize,
        clock_hz=chip.clock_hz,
    )


CHIPS = {
    "v4": _compiler_chip("v4", "v4:2x2x1", "v4-8", can_resize=False),
    "v5e": _compiler_chip("v5e", "v5e:2x2", "v5litepod-4"),
    "v5p": _compiler_chip("v5p", "v5p:2x2x1", "v5p-8"),
    "v6e": _compiler_chip("v6e", "v6e:2x2", "v6e-4"),
}


def checked_chip(chip: str, vmem_bytes: int | None) -> CompilerChip:
    """The chip of this name; raises `InputError` if there is none, or none with such a memory."""
    if chip not in CHIPS:
        raise InputError(f"chip {chip!r} cannot be compiled for; known are {', '.join(CHIPS)}")
    found = CHIPS[chip]
    if vmem_bytes is None:
        return found
    if not found.can_resize:
        raise InputError(f"the fast memory of {chip} cannot be resized; leave the size out")
    if vmem_bytes % 2**20 or not found.scratch_bytes < vmem_bytes <= HUGE_VMEM_BYTES:
        raise InputError(
            f"fast memory of {vmem_bytes} bytes: give whole MiB, more than the "
            f"{found.scratch_bytes // 2**20} MiB that {chip} sets aside for scratch, at most "
            f"{HUGE_VMEM_BYTES // 2**20} MiB"
        )
    return found


@dataclass(frozen=True, slots=True)
class Setting:
    """One compile: its name and the compiler options that differ from production's."""

    name: str
    options: tuple[tuple[str, str], ...] = ()


PRODUCTION = Setting("production")
NO_FAST_MEMORY = Setting("no_fast_memory", (("xla_msa_enable", "false"),))
HUGE = Setting("huge")


def random_order(seed: int) -> Setting:
    """Production with a random half of the buffers considered first: another placement."""
    override = (
        f"overrides {{ hlo_position_matcher {{ hlo_random_filter {{ seed: {seed} "
        "selection_range_begin: 0 selection_range_end: 0.5 } } "
        "override_options { assign_first: true } }"
    )
    return Setting(f"random_order_{seed}", (("xla_tpu_msa_sort_order_overrides", override),))


def is_hlo_file(target: str) -> bool:
    """Whether a target is an HLO text file rather than a function."""
    return target.endswith((".hlo", ".txt", ".hlo.gz", ".txt.gz"))
