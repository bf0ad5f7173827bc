-- The number of the newest migration that ran.
select coalesce(max(number), 0) from oxherd.migrations
