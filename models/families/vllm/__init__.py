"""Vision-language models that vLLM knows, from a folder as Hugging Face writes them."""
