"""Partition models of your own: labelled pairs in, a folder that load_partition_model opens out.

label.py asks a judge for labels, pairs.py reads and checks pairs, train.py is the entrance of training, head.py,
adapter.py and cross_encoder.py train, report.py says how good the result is. The commands are in commands/.
"""
