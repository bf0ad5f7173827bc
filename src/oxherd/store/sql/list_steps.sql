-- The finished steps of a run; migration 007 has the function.
-- $1 request: a JSON object.
select oxherd.list_steps($1::json)
