-- A queue's questions in one state; migration 008 has the function.
-- $1 request: a JSON object.
select oxherd.list_waits($1::json)
