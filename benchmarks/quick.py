"""Flags for XLA to compile quickly what runs only for seconds. Imports no JAX, which reads its flags at its start."""

import importlib.metadata


def flags() -> str:
    """Return XLA_FLAGS. Fusion emitters take two thirds of a compilation; newer XLA cannot do without them."""
    version = importlib.metadata.version("jaxlib").split(".")
    can_do_without = (int(version[0]), int(version[1])) < (0, 11)
    emitters = " --xla_cpu_use_fusion_emitters=false" if can_do_without else ""
    return f"--xla_backend_optimization_level=0{emitters}"
