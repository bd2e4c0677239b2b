mod frame;
mod segment;
