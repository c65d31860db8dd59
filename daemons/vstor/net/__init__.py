"""asyncio shells around proto: RPC server and client, TLS, node identity."""
