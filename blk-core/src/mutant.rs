//! Named defects that the crash explorer must catch.
//!
//! Without the feature `mutants`, which only tests enable, [`active`] is `const false` and every mutant compiles to
//! nothing. With it, one mutant at a time is switched on for the current thread, or for a whole process that a test has
//! started.

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A named defect. Each is a difference of a line or two at the place where the rule it breaks is kept.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Mutant {
            $(#[doc = $text] $name,)*
        }

        impl Mutant {
            /// Every mutant, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The defect, in words.
            #[must_use]
            pub const fn describe(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

mutants! {
    FlushWithoutHostFlush = "FLUSH acknowledged without a host flush",
    WriteAckedAtSubmission = "write acknowledged at host submission",
    FuaIgnored = "FUA ignored",
    CacheOffIgnored = "cache off, but writes acknowledged from it",
    FuaFlushBesideWrite = "FUA's flush issued beside its write instead of after",
    AtOnceTakenAsStable = "a write that the host does at once taken as stable",
    FlushErrorSwallowed = "flush error swallowed",
    FlushErrorForgotten = "flush error reported once and then forgotten",
    ResetWithoutDrain = "reset that does not drain (an old write lands later)",
    BarrierAdmitsYounger = "barrier that does not hold younger requests",
    BarrierIgnoresOlder = "barrier that does not drain older ones",
    FlushSkippedByGeneration = "a flush skipped because a generation counter was advanced too late",
    FlushOwnQueueOnly = "a flush that covers its own queue only",
    RangeAckedEarly = "discard or zeroes acknowledged early",
    CacheOffWithoutFlush = "cache-off without a flush",
    DirectTakenAsDurable = "O_DIRECT taken as durable",
    DsyncDropped = "O_DSYNC dropped in writethrough",
    HalfWrite = "half of a two-sector write",
    ResetReexecutes = "a reset that re-executes",
    ResetOneQueueOnly = "a reset of a single queue only",
    CacheSwitchInFlight = "the cache switched while a write is in flight, without waiting for it",
    AbortWithoutDrain = "an abort that is complete before what it aborts has ended",
    CacheSettingLeaks = "a cache setting that leaks from firmware to the OS",
}

/// Whether `mutant` is switched on for this thread.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
#[must_use]
pub const fn active(_mutant: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
pub use switch::{active, set, set_for_process};

#[cfg(feature = "mutants")]
mod switch {
    use super::Mutant;
    use std::cell::Cell;
    use std::sync::OnceLock;

    static PROCESS: OnceLock<Mutant> = OnceLock::new();

    std::thread_local! {
        static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Whether `mutant` is switched on for this thread.
    #[must_use]
    pub fn active(mutant: Mutant) -> bool {
        ACTIVE.get().or_else(|| PROCESS.get().copied()) == Some(mutant)
    }

    /// Switches `mutant` on for every thread, for good. Only the first one counts.
    pub fn set_for_process(mutant: Mutant) {
        PROCESS.get_or_init(|| mutant);
    }

    /// Switches `mutant` on for this thread, or all of them off.
    pub fn set(mutant: Option<Mutant>) {
        ACTIVE.set(mutant);
    }
}
