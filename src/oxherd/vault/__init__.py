"""Customers' credentials and sealed payload fields: encrypted at rest, opened where they are used."""
