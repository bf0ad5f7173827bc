"""BullMQ's wire protocol and nothing else: keys, scripts, connection, producer, consumer, admin."""
