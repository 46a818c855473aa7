"""The rules, free of any I/O: records, states, planning, ordering, errors."""
