"""What pytest does not collect: doctests of kernels whose compiler is not installed."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["normlab/ops/cuda/*"]
