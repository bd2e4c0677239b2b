//! House tasks: `cargo xtask tidy`.
fn main() {}
