//! A request: as the input encodes it, and as the test follows it.

use blk_core::op::Op;
use blk_core::order::{GuestCache, Order, Plan, Request};
use blk_core::units::Extent;

use crate::oracle::Ticket;
use crate::record;

/// Sectors of the disk.
pub const SECTORS: u64 = 8;

record! {
    /// One request.
    pub struct Ask {
        /// Operation, FUA, order, the cache as the guest was told: see [`Ask::request`].
        pub what: u8,
        /// First sector and length. Bit 5: by `start` instead of `submit`, or by `advance_later`.
        pub at: u8,
    }
}

impl Ask {
    fn extent(self) -> Extent {
        let start = u64::from(self.at) % SECTORS;
        Extent::new(start, (1 + u64::from(self.at >> 3) % 4).min(SECTORS - start))
    }

    /// Whether the owner makes the other one of two calls: see `at`.
    pub const fn by_other_call(self) -> bool {
        self.at & 0x20 != 0
    }

    /// The request, and what the guest was told of the cache.
    pub fn request(self) -> (Request, GuestCache) {
        let (extent, may_unmap) = (self.extent(), self.at & 0x80 != 0);
        let op = match self.what % 8 {
            0..=2 => Op::Write { extent, fua: false },
            3 => Op::Read { extent },
            4 | 5 => Op::Flush,
            6 => Op::WriteZeroes { extent, may_unmap },
            _ => Op::Discard { extent },
        };
        let order = if self.what & 0x60 == 0x60 { Order::Barrier } else { Order::Free };
        let cache = if self.what & 0x80 == 0 { GuestCache::WriteBack } else { GuestCache::WriteThrough };
        (Request::new(op).with_fua(self.what & 0x18 == 0x18).ordered(order), cache)
    }
}

/// What the test knows of a request in a slot.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The payload.
    pub id: u32,
    /// What was asked.
    pub request: Request,
    /// What the disk has to do for it.
    pub plan: Plan,
    /// How many operations of the plan the disk has taken.
    pub given: usize,
    /// By what the guest was told, it survives a power cut once it is done.
    pub stable: bool,
    /// Its name in the oracle.
    pub ticket: Ticket,
    /// Whether a durable operation had failed before it was taken.
    pub latched: bool,
}

impl Known {
    /// The operations of its plan that the disk has not taken.
    pub fn left(&self) -> impl Iterator<Item = Op> {
        let Plan { flush_before, op, flush_after, .. } = self.plan;
        let flush = |flush: bool| flush.then_some(Op::Flush);
        [flush(flush_before), Some(op), flush(flush_after)].into_iter().flatten().skip(self.given)
    }
}
