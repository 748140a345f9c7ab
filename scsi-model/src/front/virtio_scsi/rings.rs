//! The rings of a controller, and the chains in them: walked again whenever something of them is needed, never kept.

use core::ops::Range;

use blk_core::memory::GuestMemory;
use blk_core::units::GuestAddr;
use blk_core::virtq::{Buffer, InflightTracker, Queue, QueueError, SIZE_MAX};

use super::wire::{Management, RequestHead};

/// Index of the control queue: VIRTIO 1.3, 5.6.2.
pub const CONTROL: usize = 0;
/// Index of the event queue.
pub const EVENT: usize = 1;
/// Index of the first request queue.
pub const REQUEST: usize = 2;

/// The control queue, the event queue, and `Q` request queues.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Rings<const Q: usize> {
    control: Queue,
    event: Queue,
    #[cfg_attr(feature = "snapshot", serde(with = "serde_big_array::BigArray"))]
    request: [Queue; Q],
}

impl<const Q: usize> Rings<Q> {
    pub(super) const fn new(size_max: u16) -> Self {
        let mut request = [const { Queue::new(SIZE_MAX) }; Q];
        let mut rest = request.as_mut_slice();
        while let Some((queue, others)) = rest.split_first_mut() {
            *queue = Queue::new(size_max);
            rest = others;
        }
        Self { control: Queue::new(size_max), event: Queue::new(size_max), request }
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

/// Bytes of a command block that are looked at: no longer command is known.
pub(super) const CDB_BYTES: usize = 16;
/// Bytes of a request that are looked at; those of the other queues are shorter.
const HEADER_BYTES: usize = size_of::<RequestHead>() + CDB_BYTES;
/// Room for them: whole words, as which they are copied.
const HEADER_ROOM: usize = HEADER_BYTES.next_multiple_of(8);

const _: () = assert!(size_of::<Management>() <= HEADER_BYTES);

/// Header and length of a chain. Descriptors and header are copied once.
#[derive(Debug)]
pub(super) struct Chain {
    /// The first readable bytes; zeroes where there are fewer.
    pub(super) header: [u8; HEADER_ROOM],
    pub(super) readable: Part,
    pub(super) writable: Part,
    /// The header could be read.
    pub(super) legible: bool,
}

/// The readable or the writable part of a chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) bytes: u64,
    pieces: u16,
    /// The first two pieces.
    first: (GuestAddr, u32),
    second: (GuestAddr, u32),
}

impl Part {
    #[inline(always)]
    const fn new() -> Self {
        Self { bytes: 0, pieces: 0, first: (GuestAddr(0), 0), second: (GuestAddr(0), 0) }
    }

    /// Where the first `len` bytes are, if they are in one piece.
    #[inline]
    pub(super) fn head(&self, len: u64) -> Option<GuestAddr> {
        (u64::from(self.first.1) >= len).then_some(self.first.0)
    }

    /// Where the bytes behind the first `start` are, if these are in one piece and those too, or all in one.
    #[inline]
    pub(super) fn tail(&self, start: u64) -> Option<GuestAddr> {
        let first = u64::from(self.first.1);
        match self.pieces {
            // The ring has checked that the buffer does not wrap.
            1 if first > start => Some(GuestAddr(self.first.0.0.wrapping_add(start))),
            2 if first == start => Some(self.second.0),
            _ => None,
        }
    }

    #[inline]
    const fn add(&mut self, addr: GuestAddr, len: u32) {
        match self.pieces {
            0 => self.first = (addr, len),
            1 => self.second = (addr, len),
            _ => {}
        }
        self.pieces = self.pieces.saturating_add(1);
        // A chain has 1024 buffers at most.
        self.bytes = self.bytes.wrapping_add(len as u64);
    }
}

impl Chain {
    #[inline(always)]
    pub(super) const fn new() -> Self {
        Self { header: [0; _], readable: Part::new(), writable: Part::new(), legible: true }
    }

    /// Reads the chain at `head` into an empty one.
    #[inline(never)]
    pub(super) fn read<M: GuestMemory + ?Sized>(
        &mut self,
        ring: &mut Queue,
        memory: &M,
        head: u16,
    ) -> Result<(), QueueError> {
        ring.walk(memory, head, |buffer| {
            if buffer.writable {
                return self.writable.add(buffer.addr, buffer.len);
            }
            if self.readable.bytes < HEADER_BYTES as u64 {
                self.legible &= self.copy_header(memory, buffer);
            }
            self.readable.add(buffer.addr, buffer.len);
        })
    }

    /// Copies what a buffer has of the header.
    #[inline(always)]
    fn copy_header<M: GuestMemory + ?Sized>(&mut self, memory: &M, buffer: Buffer) -> bool {
        let copied = self.readable.bytes as usize;
        if copied == 0 && buffer.len as usize >= HEADER_ROOM {
            // Nearly always. Of constant length.
            return memory.read(buffer.addr, &mut self.header).is_ok();
        }
        let rest = self.header.get_mut(copied..HEADER_BYTES).unwrap_or_default();
        let take = rest.len().min(buffer.len as usize);
        rest.get_mut(..take).is_none_or(|into| memory.read(buffer.addr, into).is_ok())
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
