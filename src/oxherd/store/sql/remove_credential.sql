-- Forget one; migration 004 has the function.
-- $1 request: a JSON object
select oxherd.remove_credential($1::json)
