"""What a machine is: phases and guarded transitions as frozen data, proved sound, compiled once."""
