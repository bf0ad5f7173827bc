-- A page of a queue's runs; migration 010 has the function.
-- $1 request: a JSON object.
select oxherd.page_runs($1::json)
