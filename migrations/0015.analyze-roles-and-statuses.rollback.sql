-- Statistics of what is there are right with any version.
select 1;
