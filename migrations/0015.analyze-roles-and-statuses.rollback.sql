-- Nothing to undo: statistics of what is there are right with any version. Not a SELECT, whose
-- result would be printed.
set local lock_timeout = '5s';
