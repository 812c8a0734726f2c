"""Networks: one decoder for the Llama family, Hugging Face directories, tokenizers, LoRA, heads. Floor 1."""

__all__: list[str] = []
