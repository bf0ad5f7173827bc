-- A page of agents; migration 010 has the function.
-- $1 request: a JSON object.
select oxherd.list_agents($1::json)
