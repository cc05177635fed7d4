"""Whether two runs are the same job: record on each machine, compare anywhere, name the first difference."""
