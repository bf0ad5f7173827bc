-- Claim a run for a later attempt and fetch what earlier ones left; migration 003 has the function and its rules.
-- $1 run: a JSON object.
select oxherd.begin_run($1::json)
