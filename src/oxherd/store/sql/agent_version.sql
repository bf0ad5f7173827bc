-- The definition of one agent as it was in one of its versions.
-- $1 name, $2 version
select version, definition::text as definition from oxherd.agent_versions where name = $1 and version = $2
