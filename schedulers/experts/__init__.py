"""Where the experts of a mixture live, and which of their replicas work: on counts of tokens alone."""
