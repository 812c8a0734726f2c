"""Ternary and other few-bit networks: quantisers, the layer, conversion of a model in place, distillation. Floor 1."""

__all__: list[str] = []
