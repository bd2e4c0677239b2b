mod frame;
mod segment;
mod lifecycle;
pub(crate) mod rig;
