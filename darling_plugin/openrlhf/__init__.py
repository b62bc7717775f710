"""All that knows OpenRLHF and Ray: the launcher, the worker's setup hook, the hooks, the partition actor, CPU mode."""
