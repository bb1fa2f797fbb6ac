"""Chat with a vision-language model: from a parsed request to a stream of text."""
