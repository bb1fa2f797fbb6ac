"""How an answer travels and survives: at once (unary), as it is made (stream), later (job)."""
