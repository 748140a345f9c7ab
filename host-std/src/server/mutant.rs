//! Named defects of the server that its tests must find. Without the feature `mutants` they compile to nothing.

/// A named defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A request is not recorded as in flight when it is taken: it is lost with the server.
    TakenNotRecorded,
    /// The last batch is not recognised after a kill: its requests are completed twice.
    BatchNotRecognised,
    /// A ring is stopped, or disabled, as QEMU does first, without waiting for what is in flight; or memory is taken away, or a
    /// PCI device reset.
    StopWithoutDrain,
    /// A client that never read `writeback` is taken to flush.
    UnknownTakenAsWriteBack,
    /// The cache is turned off without a flush.
    CacheOffWithoutFlush,
    /// That a COMPARE AND WRITE has compared is not recorded: it is done from its beginning after a kill.
    StageNotRecorded,
    /// A SCSI unit's cache setting is kept only after the guest has its answer.
    SettingKeptLate,
}

#[cfg(feature = "mutants")]
impl Mutant {
    /// Every mutant.
    pub const ALL: &'static [Self] = &[
        Self::TakenNotRecorded,
        Self::BatchNotRecognised,
        Self::StopWithoutDrain,
        Self::UnknownTakenAsWriteBack,
        Self::CacheOffWithoutFlush,
        Self::StageNotRecorded,
        Self::SettingKeptLate,
    ];
}

/// Whether `mutant` is switched on for this thread.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub(super) const fn active(_mutant: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
pub(super) use switch::active;
#[cfg(feature = "mutants")]
pub use switch::{current, set};

#[cfg(feature = "mutants")]
mod switch {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Whether `mutant` is switched on for this thread.
    pub(in crate::server) fn active(mutant: Mutant) -> bool {
        ACTIVE.get() == Some(mutant)
    }

    /// The mutant that is switched on for this thread. A server's threads take over that of the thread that makes it.
    #[must_use]
    pub fn current() -> Option<Mutant> {
        ACTIVE.get()
    }

    /// Switches `mutant` on for this thread, or all of them off.
    pub fn set(mutant: Option<Mutant>) {
        ACTIVE.set(mutant);
    }
}
