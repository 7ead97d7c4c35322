"""One folder on several devices and machines: an actor of Ray for each device, which holds the model and takes paths."""
