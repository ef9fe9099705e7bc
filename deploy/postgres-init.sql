-- Guests get a database and a role of their own: never the catalog's, never a superuser.
CREATE ROLE guests LOGIN PASSWORD 'guests';
CREATE DATABASE results OWNER guests;
