"""
Milkrun in Airflow: batch LLM inference that defers and holds no worker.

Import from the modules, as Airflow's own providers do: `operators`, `sensors`, `hooks`, `triggers`.
This package itself imports nothing, because Airflow reads `provider` whenever it starts.
"""
