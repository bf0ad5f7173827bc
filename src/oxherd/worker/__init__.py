"""Running jobs safely: lifecycle, one job's execution, leases, retries, stalled jobs, health."""
