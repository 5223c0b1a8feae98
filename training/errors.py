"""What an exception of PyTorch's says."""

import torch


def ran_out_of_memory(error):
    """Whether an exception says that a device, or the main memory, had no room."""
    # The first: PyTorch's allocator on the CPU, in a plain RuntimeError. The second: CUDA's, for page-locked memory.
    told = any(words in str(error) for words in ("tried to allocate", "out of memory"))
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (isinstance(error, RuntimeError) and told)
