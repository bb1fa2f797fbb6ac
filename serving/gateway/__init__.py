"""The gateway: the node of the graph that clients reach, and what it is put together of."""
