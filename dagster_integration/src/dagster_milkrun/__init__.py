"""
Milkrun in Dagster: assets of batch LLM inference that hold no process while they wait.
"""
