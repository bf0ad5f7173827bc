-- The definition of one agent.
-- $1 name
select definition::text from oxherd.agents where name = $1
