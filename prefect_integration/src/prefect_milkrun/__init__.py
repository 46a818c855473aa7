"""
Milkrun in Prefect: flows of batch LLM inference that suspend while they wait.
"""
