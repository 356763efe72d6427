"""How shards are read: beside the folder they were made of, by several processes, and out of a store."""
