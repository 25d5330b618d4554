"""Training of sparse autoencoders, transcoders and crosscoders on the devices that hold their input."""
