"""
`milkrun doctor`: what is wrong with an installation, a line each, and what to do about it.

Each check is a small function from facts to a finding; `examine` fetches the facts.
"""
