"""What clients ask: one folder per task, with its types, its codecs for HTTP and gRPC, and its rules."""
