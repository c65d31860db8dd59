"""A campaign of faults against a real cluster of processes: `make chaos CHAOS_S=60 SEED=7`.

schedule.py says which faults happen when (pure, from the seed), nemesis.py does them, worker.py is a client (a process of its own that keeps a record of
all it did), verdict.py judges the records (pure), campaign.py puts them together.
"""
