"""Thin typed clients of the services around a worker. They make no decisions."""
