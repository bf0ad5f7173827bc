-- Keep who did what; migration 010 has the function.
-- $1 request: a JSON object.
select oxherd.write_audit($1::json)
