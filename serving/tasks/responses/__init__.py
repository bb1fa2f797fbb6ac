"""OpenAI's Responses: the same requests as chat's in another spelling, and nothing kept between them."""
