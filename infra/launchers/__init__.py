"""Trainers on other machines: K25_TRAINER_PYTHON names one of the two scripts here in place of an interpreter.

A launcher gets the words of a Python interpreter, `-m trainers.ranks --logs FOLDER 16 trainers.pretrain run.json`, runs
them on the cluster, says here what rank 0 says, and ends with its exit code. Run files, Pipes' files and work folders
lie below K25_WORK, which every machine mounts at the same path. Nothing of it enters a digest.
"""
