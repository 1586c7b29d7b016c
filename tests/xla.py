"""How XLA compiles what the tests run, in their own process and in those that they start."""

# The suite compiles far more than it computes: no optimisation, loops written by the plain emitters
# (a third of the compile time of those of fusions), and one module each instead of many in threads.
QUICK = (
  "--xla_backend_optimization_level=0"
  " --xla_cpu_use_fusion_emitters=false"
  " --xla_cpu_parallel_codegen_split_count=1"
)


def flags(devices: int = 1) -> str:
  """`XLA_FLAGS` of a process with so many simulated devices."""
  return f"--xla_force_host_platform_device_count={devices} {QUICK}"
