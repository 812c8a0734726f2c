"""Policies in the forms that other programs read: GGUF, transformers' BitNet, and packed safetensors of our own."""

__all__: list[str] = []
