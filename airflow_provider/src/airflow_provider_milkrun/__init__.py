"""
Milkrun in Airflow: batch LLM inference that defers and holds no worker.
"""
