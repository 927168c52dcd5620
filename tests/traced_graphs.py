"""A stand-in for CUDA graphs: a layer is traced once, and the same operations run on the same memory after that.

As in a CUDA graph, nothing of the layer's Python runs again; what is not written to the recorded memory is not seen.
"""

import torch
from torch.fx.experimental.proxy_tensor import make_fx


class Traced:
    """Records by tracing; counts what it recorded and what was replayed."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def check(self, device):
        pass

    def __call__(self, work):
        work()  # as the warm-up does

        def once():
            work()
            return torch.zeros(())

        with torch.inference_mode(False), torch.no_grad():
            graph = make_fx(once)()
        self.recorded += 1

        def replay():
            self.replayed += 1
            graph()

        return replay
