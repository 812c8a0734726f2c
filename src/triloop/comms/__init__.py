"""Communication in few bits: compressors, schemes of exchange, hooks for PyTorch's DDP, a simulator of many workers."""

__all__: list[str] = []
