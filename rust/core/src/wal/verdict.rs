//! The decision table of recovery, as one `match`. Each arm is a row of the table in `FORMAT.md`.

use super::{frame::FrameFault, scan::Stop};

/// Something recovery came across.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// A segment without a valid header.
    NoHeader {
        /// No segment with a valid header has a higher number.
        last: bool,
        /// Something in it looks like a frame.
        trace: bool,
    },
    /// Segments before it are there, the one that its successor names is not.
    Missing,
    /// The header names another segment than the file, or another log than the others.
    Foreign,
    /// The header does not fit what its successor says about it.
    Disagrees,
    /// The file is shorter than its successor says.
    ShortOfSuccessor,
    /// The frames end before the place where its successor says they do.
    BrokenInside,
    /// The end of the last segment.
    Tail(Tail),
}

/// The end of the last segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Why the chain of frames ends.
    pub stop: Stop,
    /// The file is shorter than its header says.
    pub cut_short: bool,
    /// Valid headers behind the end.
    pub later: Later,
    /// Sectors behind the end that cannot be read.
    pub unreadable: Unreadable,
    /// Something other than zeros at or behind the end.
    pub residue: bool,
}

/// What the valid headers behind the end of the chain say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Later {
    /// There is none.
    #[default]
    None,
    /// All may have been in flight together with the missing frame.
    Unproven,
    /// One proves that the missing frame was durable, or cannot be where it is.
    Proof(Proof),
}

/// How a later header proves damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proof {
    /// It lies farther on than frames can be in flight.
    Window,
    /// It says that the missing record was durable.
    Durable,
    /// It cannot come after the frames before it.
    OutOfLine,
    /// It follows a close frame.
    AfterClose,
}

/// Sectors that cannot be read at or behind the end of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Unreadable {
    /// None.
    #[default]
    None,
    /// Where frames can have been in flight.
    Near,
    /// Farther on.
    Far,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The owner closed the log here.
    Closed,
    /// The log ends here; nothing was lost.
    End,
    /// Something unpromised was being written here: cut.
    Torn,
    /// The file was prepared and never became part of the log.
    NeverUsed,
    /// Something promised is wrong: stop.
    Damage(&'static str),
}

/// The table.
pub fn judge(evidence: Evidence) -> Verdict {
    use Evidence as E;
    use FrameFault as F;
    use Verdict as V;
    match evidence {
        E::Missing => V::Damage("the segment is missing between two others"),
        E::Foreign => V::Damage("the file belongs to another segment or another log"),
        E::Disagrees => V::Damage("the segment is not the one its successor continues"),
        E::ShortOfSuccessor => V::Damage("the file is shorter than its successor says"),
        E::BrokenInside => V::Damage("frames that later ones continue are damaged"),
        E::NoHeader {
            last: true,
            trace: false,
        } => V::NeverUsed,
        E::NoHeader { .. } => V::Damage("the segment header is lost"),
        E::Tail(tail) => match (tail.stop, tail.later, tail.unreadable) {
            (_, Later::Proof(Proof::AfterClose), _) => V::Damage("a frame follows a close frame"),
            (Stop::Closed, ..) => V::Closed,
            (Stop::Fault(F::Contradiction(what)), ..) => V::Damage(what),
            (_, Later::Proof(Proof::Durable), _) => {
                V::Damage("records that a later frame says were durable are missing")
            }
            (_, Later::Proof(Proof::Window), _) => {
                V::Damage("a later frame was written after the missing one was durable")
            }
            (_, Later::Proof(Proof::OutOfLine), _) => {
                V::Damage("a later frame contradicts the ones before it")
            }
            (.., Unreadable::Far) => V::Damage("a sector behind the end cannot be read"),
            (Stop::Full, ..) => V::End,
            _ if tail.cut_short && !planted!("short_file_accepted") => {
                V::Damage("the file is shorter than its header says and was not closed")
            }
            (_, Later::Unproven, _) | (.., Unreadable::Near) => V::Torn,
            (Stop::Fault(_), Later::None, Unreadable::None) if tail.residue => V::Torn,
            (Stop::Fault(_), Later::None, Unreadable::None) => V::End,
        },
    }
}
