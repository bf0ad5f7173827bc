-- Keep what an operator or a schedule did; migration 011 has the function.
-- $1 request: a JSON object.
select oxherd.write_operation($1::json)
