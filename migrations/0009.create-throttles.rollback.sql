drop table if exists known_networks;
drop table if exists throttles;
