-- What was spent, summed; migration 006 has the function and its rules.
-- $1 request: JSON
select oxherd.spend_report($1::json)
