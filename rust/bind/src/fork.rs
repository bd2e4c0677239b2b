//! Stand-in until the engine's own module lands.

use millrace_core::{Error, ErrorKind, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin(u32);

impl Origin {
    pub fn here() -> Result<Self> {
        Ok(Self(0))
    }
    #[inline]
    pub fn check(self) -> Result<()> {
        if self.0 == u32::MAX {
            return Err(Error::new(ErrorKind::Forked, "opened before a fork"));
        }
        Ok(())
    }
}
