"""
The HTTP side: one folder a dialect (`native`), the read-only `pages`, and what they share.
"""
