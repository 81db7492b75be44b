-- The first tiles of the pool, which features fire in them, and in how many of all tiles, into the attached database
-- `building`. Variables: harvest_id, known_tiles.

INSERT INTO building.known_tiles BY NAME
SELECT getvariable('harvest_id') AS harvest_id, ['explain', 'select', 'report'][t.split + 1] AS split,
    t.tile_id::INTEGER AS tile_id, (getvariable('harvest_id')::BIGINT << 40) + i.number AS window_id,
    t."offset", t.length
FROM tiles AS t
JOIN window_ids AS i USING (unit, "window")
WHERE t.tile_id < getvariable('known_tiles')
ORDER BY t.split, t.tile_id;

INSERT INTO building.active_tiles BY NAME
SELECT getvariable('harvest_id') AS harvest_id, feature, ['explain', 'select', 'report'][split + 1] AS split,
    n_active_tiles AS n
FROM kept_stats
ORDER BY feature, split;

INSERT INTO building.firing_tiles BY NAME
SELECT getvariable('harvest_id') AS harvest_id, p.feature, ['explain', 'select', 'report'][t.split + 1] AS split,
    t.tile_id::INTEGER AS tile_id
FROM tiles AS t
JOIN kept_pool AS p ON p.unit = t.unit AND p.split = t.split AND p.tile_group = t.address >> 6
WHERE t.tile_id < getvariable('known_tiles') AND (p.mask >> (t.address & 63)) & 1 = 1
ORDER BY p.feature, t.split, t.tile_id;
