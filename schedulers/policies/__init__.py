"""One policy a kind of work, put together from an order, a batch, a cost and a progress (``schedulers.kernel``)."""
