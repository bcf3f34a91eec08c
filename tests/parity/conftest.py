"""PyTorch's side of the parity tests: quiet, and on one thread, for on busy cores its threads wait for each other."""

import torch
import transformers

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
