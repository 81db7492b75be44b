-- The known tiles of the other dictionaries, into the attached database `building`. Evidence that was merged before there
-- were any has no such tables. Variable: dictionary_id.

INSERT INTO building.known_tiles
SELECT * FROM evidence.known_tiles
WHERE harvest_id IN (FROM evidence.harvest_info SELECT harvest_id WHERE dictionary_id <> getvariable('dictionary_id'))
ORDER BY harvest_id, split, tile_id;

INSERT INTO building.active_tiles
SELECT * FROM evidence.active_tiles
WHERE harvest_id IN (FROM evidence.harvest_info SELECT harvest_id WHERE dictionary_id <> getvariable('dictionary_id'))
ORDER BY harvest_id, feature, split;

INSERT INTO building.firing_tiles
SELECT * FROM evidence.firing_tiles
WHERE harvest_id IN (FROM evidence.harvest_info SELECT harvest_id WHERE dictionary_id <> getvariable('dictionary_id'))
ORDER BY harvest_id, feature, split, tile_id;
