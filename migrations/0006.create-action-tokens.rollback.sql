drop table if exists action_tokens;
