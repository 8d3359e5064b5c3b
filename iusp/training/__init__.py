"""The training loop, distributed training, and the stored knowledge. No module here depends on a distillation loss."""
