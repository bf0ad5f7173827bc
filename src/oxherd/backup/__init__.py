"""Backups: dump, encrypt, store, prove, restore. Nothing here decides when; `oxherd.ops.backup` asks before it acts."""
