"""TextHawk2: a vision-language model with 16 tokens per image tile."""
