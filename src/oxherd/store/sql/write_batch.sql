-- Write runs and steps in one transaction; migration 003 has the function and its rules.
-- $1 runs, $2 steps: JSON arrays, or null for none. Answers with the positions that were fenced off.
select oxherd.write_batch($1::json, $2::json)
