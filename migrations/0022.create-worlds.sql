-- depends: 0021.tell-domains-apart
--
-- Worlds, their events, stories and beats. Each row below a world carries its world_id, and
-- references are made with it, so that none leads from one world into another.
--
-- worlds.stories, events and beats count the rows of the world. Whoever adds or removes one locks the
-- world and updates its count, so limits need no counting, and rules across rows of a world hold.
-- A world is deleted by setting deleted_at; a job deletes its rows later, in slices.
--
-- The words of events, stories and beats are in tables of their own, so that a change of order does
-- not index them again. They are split by the text-search configuration of the world. It is text, not
-- regconfig, because pg_upgrade refuses columns of that type. btree_gin makes one index of the world
-- and the words, so that a search costs no more if there are many worlds.
--
-- The order of beats is unique. The constraint is checked after each statement, so that one statement
-- can reorder them all.

set local lock_timeout = '5s';
set local statement_timeout = 0;

create extension if not exists btree_gin;

create table if not exists worlds (
    id uuid primary key,
    user_id uuid not null references users (id),
    name text not null,
    description text,
    tone text,
    backdrop text,
    laws jsonb not null,
    chronology_mode text not null
        constraint worlds_chronology_mode_check
        check (chronology_mode in ('linear', 'fragmented', 'timeless')),
    text_search text not null,
    stories integer not null default 0,
    events integer not null default 0,
    beats integer not null default 0,
    version integer not null default 1,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    deleted_at timestamptz
);
create index if not exists worlds_user_id_id_idx on worlds (user_id, id);
create index if not exists worlds_deleted_at_idx on worlds (deleted_at) where deleted_at is not null;

create table if not exists world_events (
    id uuid primary key,
    world_id uuid not null references worlds (id),
    t double precision not null,
    label_time text,
    type text not null,
    summary text not null,
    description text,
    location text,
    location_id uuid,
    tags text[] not null,
    version integer not null default 1,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    constraint world_events_world_id_id_key unique (world_id, id)
);
create index if not exists world_events_world_id_t_id_idx on world_events (world_id, t, id);

create table if not exists event_causes (
    world_id uuid not null,
    event_id uuid not null,
    cause_id uuid not null,
    constraint event_causes_pkey primary key (event_id, cause_id),
    constraint event_causes_event_fkey foreign key (world_id, event_id)
        references world_events (world_id, id) on delete cascade,
    constraint event_causes_cause_fkey foreign key (world_id, cause_id)
        references world_events (world_id, id) on delete cascade,
    constraint event_causes_itself_check check (event_id <> cause_id)
);
create index if not exists event_causes_cause_id_idx on event_causes (cause_id);
create index if not exists event_causes_world_id_idx on event_causes (world_id, event_id);

create table if not exists stories (
    id uuid primary key,
    world_id uuid not null references worlds (id),
    title text not null,
    synopsis text,
    theme text,
    status text not null
        constraint stories_status_check
        check (status in ('draft', 'active', 'completed', 'archived')),
    mode text not null
        constraint stories_mode_check check (mode in ('autonomous', 'collaborative', 'manual')),
    pov_type text not null
        constraint stories_pov_type_check check (pov_type in ('first', 'third', 'omniscient')),
    tags text[] not null,
    archived_at timestamptz,
    version integer not null default 1,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    constraint stories_world_id_id_key unique (world_id, id)
);
create index if not exists stories_world_id_updated_at_id_idx on stories (world_id, updated_at, id);

create table if not exists story_beats (
    id uuid primary key,
    world_id uuid not null references worlds (id),
    story_id uuid not null,
    order_index integer not null,
    content text not null,
    words integer not null,
    characters integer not null,
    type text not null,
    world_event_id uuid,
    generated_by text not null
        constraint story_beats_generated_by_check
        check (generated_by in ('ai', 'user', 'collaborative')),
    summary text,
    local_time_label text,
    generation_reasoning text,
    version integer not null default 1,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    constraint story_beats_story_fkey foreign key (world_id, story_id)
        references stories (world_id, id) on delete cascade,
    constraint story_beats_event_fkey foreign key (world_id, world_event_id)
        references world_events (world_id, id) on delete set null (world_event_id),
    constraint story_beats_order_key unique (story_id, order_index) deferrable initially immediate
);
create index if not exists story_beats_world_event_id_idx
    on story_beats (world_event_id, story_id) where world_event_id is not null;
create index if not exists story_beats_story_id_world_event_id_idx
    on story_beats (story_id, world_event_id) where world_event_id is not null;
create index if not exists story_beats_world_id_id_idx on story_beats (world_id, id);

create table if not exists event_words (
    id uuid primary key references world_events (id) on delete cascade,
    world_id uuid not null,
    words tsvector not null
);
create index if not exists event_words_idx on event_words using gin (world_id, words);

create table if not exists story_words (
    id uuid primary key references stories (id) on delete cascade,
    world_id uuid not null,
    words tsvector not null
);
create index if not exists story_words_idx on story_words using gin (world_id, words);

create table if not exists beat_words (
    id uuid primary key references story_beats (id) on delete cascade,
    world_id uuid not null,
    words tsvector not null
);
create index if not exists beat_words_idx on beat_words using gin (world_id, words);
