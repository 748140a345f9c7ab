//! The rings of a controller, and the chains in them: walked again whenever something of them is needed, never kept.

use core::ops::Range;

use blk_core::memory::GuestMemory;
use blk_core::units::GuestAddr;
use blk_core::virtq::{InflightTracker, Queue, QueueError};

/// Index of the control queue: VIRTIO 1.3, 5.6.2.
pub const CONTROL: usize = 0;
/// Index of the event queue.
pub const EVENT: usize = 1;
/// Index of the first request queue.
pub const REQUEST: usize = 2;

/// The control queue, the event queue, and `Q` request queues.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Rings<const Q: usize> {
    control: Queue,
    event: Queue,
    #[cfg_attr(feature = "snapshot", serde(with = "serde_big_array::BigArray"))]
    request: [Queue; Q],
}

impl<const Q: usize> Rings<Q> {
    pub(super) fn new(size_max: u16) -> Self {
        let queue = Queue::new(size_max);
        Self {
            control: queue.clone(),
            event: queue.clone(),
            request: core::array::from_fn(|_| queue.clone()),
        }
    }

    pub(super) fn get(&self, index: usize) -> Option<&Queue> {
        match index {
            CONTROL => Some(&self.control),
            EVENT => Some(&self.event),
            _ => self.request.get(index.checked_sub(REQUEST)?),
        }
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut Queue> {
        match index {
            CONTROL => Some(&mut self.control),
            EVENT => Some(&mut self.event),
            _ => self.request.get_mut(index.checked_sub(REQUEST)?),
        }
    }

    pub(super) fn reset(&mut self) {
        self.control.reset();
        self.event.reset();
        self.request.iter_mut().for_each(Queue::reset);
    }
}

/// Header and length of a chain. Descriptors and header are copied once.
#[derive(Debug)]
pub(super) struct Chain<const H: usize> {
    /// The first readable bytes; zeroes where there are fewer.
    pub(super) header: [u8; H],
    pub(super) readable: Part,
    pub(super) writable: Part,
    /// The header could be read.
    pub(super) legible: bool,
}

/// The readable or the writable part of a chain: some bytes that belong to the transport, and then data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// Bytes of both.
    pub(super) bytes: u64,
    /// Bytes before the data.
    before: u64,
    /// Where these are, if they are in one piece.
    pub(super) head: Option<GuestAddr>,
    /// Where the data begins.
    data: Option<GuestAddr>,
    /// The data goes on in another piece.
    scattered: bool,
}

impl Part {
    const fn new(before: u64) -> Self {
        Self { bytes: 0, before, head: None, data: None, scattered: false }
    }

    /// Where the data is, if there is any and it is in one piece.
    pub(super) fn data(&self) -> Option<GuestAddr> {
        self.data.filter(|_| !self.scattered)
    }

    #[inline]
    fn add(&mut self, addr: GuestAddr, len: u32) {
        let start = self.bytes;
        self.bytes = start.saturating_add(len.into());
        if start == 0 && self.bytes >= self.before {
            self.head = Some(addr);
        }
        if self.bytes > self.before {
            self.scattered = self.data.is_some();
            // The ring has checked that the buffer does not wrap.
            let at = addr.0.wrapping_add(self.before.saturating_sub(start));
            self.data = self.data.or(Some(GuestAddr(at)));
        }
    }
}

impl<const H: usize> Chain<H> {
    /// Reads the chain at `head`. Its data begins after so many readable and so many writable bytes.
    #[inline]
    pub(super) fn read<M: GuestMemory + ?Sized>(
        ring: &mut Queue,
        memory: &M,
        head: u16,
        (readable, writable): (u64, u64),
    ) -> Result<Self, QueueError> {
        let (readable, writable) = (Part::new(readable), Part::new(writable));
        let mut chain = Self { header: [0; H], readable, writable, legible: true };
        ring.walk(memory, head, |buffer| {
            if buffer.writable {
                return chain.writable.add(buffer.addr, buffer.len);
            }
            let copied = usize::try_from(chain.readable.bytes).unwrap_or(usize::MAX);
            if let Some(rest) = chain.header.get_mut(copied..) {
                let take = rest.len().min(usize::try_from(buffer.len).unwrap_or(usize::MAX));
                let into = rest.get_mut(..take).unwrap_or_default();
                chain.legible &= into.is_empty() || memory.read(buffer.addr, into).is_ok();
            }
            chain.readable.add(buffer.addr, buffer.len);
        })?;
        Ok(chain)
    }
}

/// Visits the guest memory of the bytes `range` of a chain's writable or else readable part, in order.
pub(super) fn pieces<M: GuestMemory + ?Sized>(
    ring: &mut Queue,
    memory: &M,
    head: u16,
    writable: bool,
    range: Range<u64>,
    mut visit: impl FnMut(GuestAddr, u32),
) -> Result<(), QueueError> {
    let mut at = 0_u64;
    ring.walk(memory, head, |buffer| {
        if buffer.writable != writable {
            return;
        }
        let end = at.saturating_add(buffer.len.into());
        let (from, to) = (range.start.max(at), range.end.min(end));
        if from < to {
            let len = u32::try_from(to.saturating_sub(from)).unwrap_or(u32::MAX);
            // The ring has checked that the buffer does not wrap.
            visit(GuestAddr(buffer.addr.0.wrapping_add(from.saturating_sub(at))), len);
        }
        at = end;
    })
}

/// Writes `bytes` into a chain's writable part from byte `offset` on, as many as it has room for, and returns how many.
#[inline(never)]
pub(super) fn put<M: GuestMemory + ?Sized>(
    ring: &mut Queue,
    memory: &M,
    head: u16,
    offset: u64,
    bytes: &[u8],
) -> Result<u32, QueueError> {
    let end = offset.saturating_add(bytes.len() as u64);
    let mut rest = bytes;
    let mut failed = false;
    pieces(ring, memory, head, true, offset..end, |addr, len| {
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(rest.len());
        let (now, later) = rest.split_at_checked(len).unwrap_or((rest, &[]));
        rest = later;
        failed |= memory.write(addr, now).is_err();
    })?;
    if failed {
        return Err(ring.break_with(QueueError::Memory));
    }
    Ok(u32::try_from(bytes.len().saturating_sub(rest.len())).unwrap_or(u32::MAX))
}

/// The ring at `index` with its log, if both are there and the ring works.
pub(super) fn running<'a, I: InflightTracker, const Q: usize>(
    rings: &'a mut Rings<Q>,
    logs: &'a mut [I],
    index: usize,
) -> Option<(&'a mut Queue, &'a mut I)> {
    let ring = rings.get_mut(index).filter(|ring| ring.is_running())?;
    Some((ring, logs.get_mut(index)?))
}
