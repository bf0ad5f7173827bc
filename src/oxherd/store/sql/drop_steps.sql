-- Forget a step and what came after it; migration 007 has the function.
-- $1 request: a JSON object.
select oxherd.drop_steps($1::json)
