"""Everything that knows Ray, asyncio, HTTP, gRPC and Redis."""
