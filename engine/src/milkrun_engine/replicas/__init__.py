"""
Replicas (*what* generates) and pools (*where* they run).

`base` holds the messages and the two seams. `echo` and `vllm` are replicas, `local` and `ray`
are pools; `requests` is where every replica begins, `hosting` what every process of one does.
`models`, `weights` and `profiles` say what is loaded and how, `remains` what is removed after.
"""
