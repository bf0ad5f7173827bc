-- Close questions whose jobs are gone; migration 008 has the function.
-- $1 request: a JSON object.
select oxherd.withdraw_waits($1::json)
