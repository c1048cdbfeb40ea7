alter table signing_keys drop column if exists signs_from;
