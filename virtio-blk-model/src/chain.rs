//! A request's buffers, sorted: header, data, status, however the driver cut them (VIRTIO 1.3, 2.7.4.1).

use blk_core::memory::GuestMemory;
use blk_core::op::Segment;
use blk_core::units::GuestAddr;
use blk_core::virtq::{Buffer, Descriptor, QueueError, RunningRing};
use heapless::Vec;

use crate::wire::RequestHeader;

/// Most data segments in a request.
pub const SEGMENTS_MAX: usize = 128;

const HEADER_BYTES: u32 = size_of::<RequestHeader>() as u32;

/// The data segments of a request: the readable ones, then the writable ones. On the stack, where it is never initialised as a
/// whole.
pub(crate) type Segments = Vec<Segment, SEGMENTS_MAX>;

/// What a chain is apart from its data segments. Descriptors and the header are copied once; the data stays where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    /// The header, as little-endian words.
    header: [u64; 2],
    /// How many of the segments are readable.
    readable: usize,
    readable_bytes: u64,
    writable_bytes: u64,
    /// Where the status byte is, the last one that is writable. `None`: there is nothing writable, and so no way to answer.
    status: Option<GuestAddr>,
    /// The header is whole and memory, and there are no more segments than the device takes.
    usable: bool,
}

impl Chain {
    /// Sorts the buffers of the chain at `head`, if they are as drivers nearly always have them: the header in one, data in one
    /// direction, the status byte in one of its own. `None` for anything else, which [`Self::sort`] is for.
    #[inline(always)]
    pub(crate) fn usual<M: GuestMemory + ?Sized>(
        ring: &RunningRing<'_>,
        memory: &M,
        head: u16,
        segments: &mut Segments,
    ) -> Option<Self> {
        segments.clear();
        let (table, first) = ring.first(memory, head).ok()?;
        if first.flags != Descriptor::NEXT || first.len != HEADER_BYTES || !first.fits() {
            return None;
        }
        let header = memory.read_u64_pair(first.addr).ok()?;
        let mut descriptor = table.descriptor(memory, first.next).ok()?;
        let direction = descriptor.flags;
        let mut bytes = 0_u64;
        while descriptor.flags & Descriptor::NEXT != 0 {
            let Descriptor { addr, len, flags, next } = descriptor;
            if flags != direction || flags & Descriptor::INDIRECT != 0 || len == 0 || !descriptor.fits() {
                return None;
            }
            // Also bounds a loop.
            segments.push(Segment::Guest { addr, len }).ok()?;
            bytes = bytes.wrapping_add(u64::from(len));
            descriptor = table.descriptor(memory, next).ok()?;
        }
        if descriptor.flags != Descriptor::WRITE || descriptor.len != 1 || !descriptor.fits() {
            return None;
        }
        let writable = direction & Descriptor::WRITE != 0;
        Some(Self {
            header,
            readable: if writable { 0 } else { segments.len() },
            readable_bytes: if writable { 0 } else { bytes },
            writable_bytes: if writable { bytes } else { 0 },
            status: Some(descriptor.addr),
            usable: true,
        })
    }

    /// Sorts the buffers of the chain at `head`, however the driver cut them, into an empty chain.
    #[cold]
    #[inline(never)]
    pub(crate) fn sort<M: GuestMemory + ?Sized>(
        &mut self,
        ring: &RunningRing<'_>,
        memory: &M,
        head: u16,
        segments: &mut Segments,
    ) -> Result<(), QueueError> {
        segments.clear();
        let mut sorter = Sorter::new(self, segments);
        let mut walk = ring.walk(head);
        while let Some(buffer) = walk.next(memory)? {
            sorter.add(memory, buffer);
        }
        sorter.finish();
        Ok(())
    }

    /// Where the status byte is, the last one that is writable. `None`: there is nothing writable, and so no way to answer.
    #[inline(always)]
    pub(crate) const fn status(&self) -> Option<GuestAddr> {
        self.status
    }

    /// Whether the header is whole and memory, and there are no more segments than the device takes.
    #[inline(always)]
    pub(crate) const fn is_usable(&self) -> bool {
        self.usable
    }

    /// The header, of a chain that is usable.
    #[inline(always)]
    pub(crate) fn header(&self) -> RequestHeader {
        let [first, sector] = self.header;
        RequestHeader {
            kind: ((first & 0xffff_ffff) as u32).into(),
            reserved: ((first >> 32) as u32).into(),
            sector: sector.into(),
        }
    }

    /// The segments behind the header, for the device to read, and their bytes.
    #[inline]
    pub(crate) fn readable<'a>(&self, segments: &'a Segments) -> (&'a [Segment], u64) {
        (segments.get(..self.readable).unwrap_or_default(), self.readable_bytes)
    }

    /// The segments before the status byte, for the device to write, and their bytes.
    #[inline]
    pub(crate) fn writable<'a>(&self, segments: &'a Segments) -> (&'a [Segment], u64) {
        (segments.get(self.readable..).unwrap_or_default(), self.writable_bytes)
    }
}

/// Sorts a chain in general. Readable buffers come before writable ones: the ring sees to that.
struct Sorter<'a> {
    chain: &'a mut Chain,
    segments: &'a mut Segments,
    header: [u8; HEADER_BYTES as usize],
    /// Bytes of the header so far.
    header_bytes: u32,
    /// The last writable buffer, of which the last byte is the status byte. Its length is 0 where there is none.
    last: (GuestAddr, u32),
    /// More data segments than fit, or a header that is not memory.
    unusable: bool,
}

impl<'a> Sorter<'a> {
    const fn new(chain: &'a mut Chain, segments: &'a mut Segments) -> Self {
        let header = [0; HEADER_BYTES as usize];
        Self { chain, segments, header, header_bytes: 0, last: (GuestAddr(0), 0), unusable: false }
    }

    fn add<M: GuestMemory + ?Sized>(&mut self, memory: &M, buffer: Buffer) {
        let Buffer { addr, len, writable } = buffer;
        if writable {
            let (addr, len) = core::mem::replace(&mut self.last, (addr, len));
            self.push(addr, len);
            self.chain.writable_bytes = self.chain.writable_bytes.wrapping_add(u64::from(len));
            return;
        }
        let rest = self.header.get_mut(self.header_bytes as usize..).unwrap_or_default();
        let take = u32::try_from(rest.len()).unwrap_or(0).min(len);
        self.unusable |= memory.read(addr, rest.get_mut(..take as usize).unwrap_or_default()).is_err();
        self.header_bytes = self.header_bytes.wrapping_add(take);
        let len = len.wrapping_sub(take);
        // The ring has checked that the buffer does not wrap.
        self.push(GuestAddr(addr.0.wrapping_add(u64::from(take))), len);
        self.chain.readable = self.segments.len();
        self.chain.readable_bytes = self.chain.readable_bytes.wrapping_add(u64::from(len));
    }

    /// Cuts off the status byte.
    fn finish(mut self) {
        let (addr, len) = self.last;
        if let Some(rest) = len.checked_sub(1) {
            self.push(addr, rest);
            self.chain.writable_bytes = self.chain.writable_bytes.wrapping_add(u64::from(rest));
            self.chain.status = Some(GuestAddr(addr.0.wrapping_add(u64::from(rest))));
        }
        let words: [[u8; 8]; 2] = zerocopy::transmute!(self.header);
        self.chain.header = words.map(u64::from_le_bytes);
        self.chain.usable = self.header_bytes == HEADER_BYTES && !self.unusable;
    }

    fn push(&mut self, addr: GuestAddr, len: u32) {
        if len != 0 {
            self.unusable |= self.segments.push(Segment::Guest { addr, len }).is_err();
        }
    }
}

/// Copies `into.len()` bytes of guest segments. `None` if they are fewer, or not memory.
pub(crate) fn copy_out<M: GuestMemory + ?Sized>(
    memory: &M,
    segments: &[Segment],
    into: &mut [u8],
) -> Option<()> {
    let mut at: usize = 0;
    for segment in segments {
        let Segment::Guest { addr, len } = *segment else { return None };
        let rest = into.get_mut(at..)?;
        let take = rest.len().min(usize::try_from(len).ok()?);
        memory.read(addr, rest.get_mut(..take)?).ok()?;
        at = at.checked_add(take)?;
    }
    (at == into.len()).then_some(())
}

/// Copies `bytes` into guest segments, as many as fit, and returns how many that were. `None` if they are not memory.
pub(crate) fn copy_in<M: GuestMemory + ?Sized>(
    memory: &M,
    segments: &[Segment],
    bytes: &[u8],
) -> Option<u32> {
    let mut at: usize = 0;
    for segment in segments {
        let Segment::Guest { addr, len } = *segment else { return None };
        let rest = bytes.get(at..)?;
        let take = rest.len().min(usize::try_from(len).ok()?);
        memory.write(addr, rest.get(..take)?).ok()?;
        at = at.checked_add(take)?;
    }
    u32::try_from(at).ok()
}

#[cfg(test)]
mod tests;
