"""The training loop, distributed training, and the teacher's stored knowledge. Independent of the losses."""
