-- Store an envelope; migration 004 has the function.
-- $1 request: a JSON object
select oxherd.put_credential($1::json)
