-- Rows of the ledger whose bill is not known yet; migration 006 has the function and its rules.
-- $1 request: JSON
select oxherd.unsettled_spend($1::json)
