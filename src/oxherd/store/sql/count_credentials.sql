-- How many each key sealed; migration 004 has the function.
-- $1 request: an empty JSON object
select oxherd.count_credentials($1::json)
