"""Scorers that need the model too, in three steps through the store: ask (a row in `measure_tasks`), measure
(`autointerp measure`, where the model is), judge (rows in `scores`). Here are the first and the last, without I/O, one
file per scorer; measured_run.py carries them out."""
