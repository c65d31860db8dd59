"""Pure cores: no I/O, no clock, no asyncio."""
