//! Defects of the sequencer that tests switch on. Without the feature `mutants` all of it is constant.

use super::{Done, Sequencer, Stage};
use crate::mutant::{Mutant, active};
use crate::op::{Op, Segment};
use crate::order::plan::{Order, Request};
use crate::units::{Extent, SECTOR_BYTES};

impl<T, const N: usize> Sequencer<T, N> {
    pub(super) fn drops_flush(&mut self, exclusive: bool) -> bool {
        active(Mutant::FlushWithoutHostFlush)
            || exclusive && active(Mutant::CacheOffWithoutFlush)
            || active(Mutant::FlushSkippedByGeneration) && self.skips_flush()
    }

    /// Among others QEMU's defect (host-std/tests/defects.md, 16): the counter that says "something is dirty" is advanced after
    /// it was looked at.
    #[inline(always)]
    pub(super) fn skips_flush(&mut self) -> bool {
        #[cfg(feature = "mutants")]
        {
            if active(Mutant::FuaFlushBesideWrite) {
                // It ran beside its write.
                return true;
            }
            if active(Mutant::FlushSkippedByGeneration) {
                return !core::mem::take(&mut self.dirty);
            }
        }
        false
    }

    pub(super) fn acked_early(&mut self) -> Option<Done> {
        let slot = self.slots.iter().position(|s| s.stage == Stage::AckEarly)?;
        let slot = u16::try_from(slot).ok()?;
        let plan = self.slots.get(usize::from(slot))?.plan;
        self.set(slot, Stage::Ended, plan);
        Some(Done { slot, result: Ok(()) })
    }

    /// Whether a mutant lets an exclusive request start beside older ones.
    pub(super) fn drain_dropped(request: &Request) -> bool {
        match (request.op, request.order) {
            (Op::Flush, Order::Barrier) => active(Mutant::CacheSwitchInFlight),
            _ => active(Mutant::BarrierIgnoresOlder),
        }
    }

    /// The mutant's write: the first of two sectors, and the segment that holds it.
    pub(super) fn first_half(op: Op, segments: &[Segment]) -> (Op, Option<Segment>) {
        match (op, segments.first()) {
            (Op::Write { extent, fua }, Some(&first)) if extent.sectors == 2 => {
                let half = match first {
                    Segment::Guest { addr, .. } => Segment::Guest { addr, len: SECTOR_BYTES },
                    Segment::Staging { offset, .. } => Segment::Staging { offset, len: SECTOR_BYTES },
                };
                (Op::Write { extent: Extent { sectors: 1, ..extent }, fua }, Some(half))
            }
            _ => (op, None),
        }
    }
}
