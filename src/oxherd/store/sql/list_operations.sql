-- A page of what operators and schedules did; migration 011 has the function.
-- $1 request: a JSON object.
select oxherd.list_operations($1::json)
