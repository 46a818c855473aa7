"""The read-only pages: a job and the list of jobs, without scripts."""
