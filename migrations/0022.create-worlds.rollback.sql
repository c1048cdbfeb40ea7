set local lock_timeout = '5s';
set local statement_timeout = 0;

drop table if exists beat_words;
drop table if exists story_words;
drop table if exists event_words;
drop table if exists story_beats;
drop table if exists stories;
drop table if exists event_causes;
drop table if exists world_events;
drop table if exists worlds;
