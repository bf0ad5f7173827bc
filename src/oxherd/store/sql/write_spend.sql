-- Write to the ledger; migration 006 has the function and its rules.
-- $1 request: JSON
select oxherd.write_spend($1::json)
