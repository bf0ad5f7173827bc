-- One envelope; migration 004 has the function.
-- $1 request: a JSON object
select oxherd.get_credential($1::json)
