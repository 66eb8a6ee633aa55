"""From a `Program` to a `MemoryMap` and a bound; nothing here imports jax."""
