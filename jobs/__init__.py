"""What a job is, where it waits, and where its outcome is kept: all that producer and worker share."""
