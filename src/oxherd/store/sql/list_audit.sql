-- A page of who did what; migration 010 has the function.
-- $1 request: a JSON object.
select oxherd.list_audit($1::json)
