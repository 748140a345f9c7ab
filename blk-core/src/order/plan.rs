//! Maps a request, the cache setting that the guest was told and the storage's real cache to the host operations that keep
//! its durability promise. Pure.

use crate::mutant::{Mutant, active};
use crate::op::Op;
use crate::storage::{Cache, Info};

/// Order of a request among the others of its device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Order {
    /// May run in any order with others in flight.
    #[default]
    Free,
    /// Every older request is done before it starts, none younger starts before it is done, and a crash never shows
    /// it, or anything younger, without everything older.
    Barrier,
}

/// A guest's request, decoded: what to do, whether it must be stable when it is done, and in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// The guest asked for Force Unit Access. For a read: what is returned is stable.
    pub fua: bool,
    /// Where it stands among the others.
    pub order: Order,
}

impl Request {
    /// A request without FUA and without an order.
    #[must_use]
    pub const fn new(op: Op) -> Self {
        Self { op, fua: false, order: Order::Free }
    }

    /// The same with FUA.
    #[must_use]
    pub const fn with_fua(self, fua: bool) -> Self {
        Self { fua, ..self }
    }

    /// The same in another order.
    #[must_use]
    pub const fn ordered(self, order: Order) -> Self {
        Self { order, ..self }
    }
}

/// Write cache setting that the guest was told when it made a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum GuestCache {
    /// Completed writes are stable: the guest need not flush, and will not.
    WriteThrough,
    /// Completed writes may be volatile until a flush.
    WriteBack,
}

/// The host operations that keep a request's promise, in this order, each submitted after the one before completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Plan {
    /// Wait until nothing older is in flight, and hold what is younger.
    pub exclusive: bool,
    /// Flush first.
    pub flush_before: bool,
    /// The operation itself, with native FUA where that keeps the promise.
    pub op: Op,
    /// Flush after it has completed, and only then report it.
    pub flush_after: bool,
}

/// Plans `request` for a guest that was told `guest` about its cache, on a storage described by `info`.
///
/// Stable here means what SEMANTICS.md of this crate calls stable: done, and either FUA, or written while the cache was advertised as off,
/// or inside a barrier. Where the host's completed writes are stable already, nothing is added to a write; zeroes and
/// discards are another matter, since `O_DSYNC` does not cover them.
#[must_use]
#[inline]
pub fn plan(request: &Request, guest: GuestCache, info: &Info) -> Plan {
    let exclusive = matches!(request.order, Order::Barrier);
    let fua = request.fua && !active(Mutant::FuaIgnored);
    let write_through = matches!(guest, GuestCache::WriteThrough) && !active(Mutant::CacheOffIgnored);
    let volatile = matches!(info.cache, Cache::WriteBack);
    let mut plan = Plan { exclusive, flush_before: false, op: request.op, flush_after: false };

    match request.op {
        // A flush is asked of the host in every mode: where nothing is dirty it still reports the latch.
        // A hold promises nothing, and a record is stable by itself.
        Op::Flush | Op::Hold { .. } | Op::LoadState { .. } | Op::StoreState { .. } => {}
        Op::Read { .. } => plan.flush_before = fua,
        Op::Write { extent, .. } => {
            let stable = (fua || write_through || exclusive) && volatile;
            plan.flush_before = stable && exclusive;
            plan.op = Op::Write { extent, fua: stable && info.fua };
            plan.flush_after = stable && !info.fua;
        }
        Op::WriteZeroes { .. } | Op::Discard { .. } => {
            plan.flush_before = exclusive && volatile;
            let stable = !matches!(info.cache, Cache::Unsafe) && (fua || write_through || exclusive);
            plan.flush_after = stable && !info.range_stable && !active(Mutant::RangeAckedEarly);
        }
    }
    plan
}
