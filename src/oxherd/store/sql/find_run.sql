-- The newest run of a job id; migration 007 has the function.
-- $1 request: a JSON object.
select oxherd.find_run($1::json)
