-- A page of credentials; migration 004 has the function.
-- $1 request: a JSON object
select oxherd.list_credentials($1::json)
