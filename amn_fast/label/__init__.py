"""Labels new images with the networks of a finished run: one at a time, or millions of them in shards.

`labeler` computes one mask in memory. `inputs` lists images and their labels, `shards` fixes what is computed together
and what a finished shard looks like, `worker` computes shards, `engines` runs workers here or on Ray.
"""
