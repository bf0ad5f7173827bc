-- One agent as it is now.
-- $1 name
select version, definition::text as definition from oxherd.agents where name = $1
