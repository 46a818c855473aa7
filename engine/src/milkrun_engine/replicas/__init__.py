"""
Replicas (*what* generates) and pools (*where* they run).

`base` holds the messages and the two seams; `echo` and `vllm` are replicas; `local` and
`ray` are pools.
"""
