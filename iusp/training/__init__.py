"""The training loop, the teacher's stored knowledge, several processes; never which loss is used."""
