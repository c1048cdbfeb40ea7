-- depends: 0014.index-users-by-address
--
-- Fills the statistics that 0014 created: until the table is next analyzed, which may be long after
-- on one that seldom changes, the planner does not know them.

set local lock_timeout = '5s';

analyze users (role, status);
